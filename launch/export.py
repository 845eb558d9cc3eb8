"""widebatch export RUN --out FILE: the weights of a run for other programs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = argparse.ArgumentParser(prog="widebatch export", description=COMMANDS["export"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that a run wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="a name that ends in .safetensors; any other is a Hugging Face folder"
    )
    parser.add_argument("--ema", action="store_true", help="the running average of the weights (optim.ema) in their place")
    args = parser.parse_args(argv)
    from harness.engine.export import export

    print(export(args.run, args.out, average=args.ema))
    return 0
