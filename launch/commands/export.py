"""widebatch export RUN --out FILE: the weights of a run for other programs."""

from collections.abc import Sequence

from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.options.run_argument import add_run_folder, read_run_folder
from launch.options.trust_option import CODE


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch export", description=COMMANDS["export"], allow_abbrev=False)
    add_run_folder(parser)
    parser.add_argument(
        "--out",
        type=local_path("--out"),
        required=True,
        help="a name that ends in .safetensors; any other is a Hugging Face folder",
    )
    parser.add_argument("--ema", action="store_true", help="export the running average of the weights (optim.ema) instead")
    parser.add_argument("--adapter", action="store_true", help="export a LoRA run's adapters alone, a folder as peft reads it")
    args = parser.parse_args(argv)
    if args.adapter and (args.ema or args.out.suffix == ".safetensors"):
        raise UserError("--adapter", "writes a folder of the adapters that are trained", "give --out FOLDER, and no --ema")
    config = read_run_folder("export", args, CODE if args.out.suffix == ".safetensors" else CODE[1:])
    from harness.tools.export import export

    echo(export(config, args.run, args.out, average=args.ema, adapter=args.adapter))
    return 0
