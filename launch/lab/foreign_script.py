"""widebatch verify -- COMMAND: does a training script do on N ranks what data-parallel training should? Here, over gloo."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness.analysis.equivalence import Finding
from harness.analysis.script_findings import StepSeen, judge_script
from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from harness.supervision.temporary_folders import temporary_folder
from launch.processes.command import Command
from launch.processes.spawn import run

ENVIRON = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
"""For torch and Accelerate to run CPU ranks over gloo, and for a script that resumes a run in W&B to write nothing to it."""


def verify_script(argv: Sequence[str]) -> int:
    """Status 0 where nothing differs, 1 where something does. Raises UserError."""
    split = list(argv).index("--")
    parser = Parser(prog="widebatch verify", allow_abbrev=False)
    parser.add_argument("--procs", type=int, default=2, help="ranks")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps")
    args = parser.parse_args(argv[:split])
    if args.procs < 2 or args.steps < 1:
        raise UserError("--procs", f"is {args.procs}, and --steps {args.steps}", "give at least 2 ranks and 1 step")
    script, options = script_of(argv[split + 1 :])
    with temporary_folder("widebatch-verify-") as folder:
        alone = _seen(folder / "alone", 1, args, script, options)
        ranks = _seen(folder / "ranks", args.procs, args, script, options)
    found = judge_script(ranks, alone[0])
    return _told(found, args)


def script_of(command: Sequence[str]) -> tuple[str, list[str]]:
    """(the script, its arguments) of a command such as `accelerate launch --num_processes 8 train.py --lr 1`. Raises UserError."""
    place = next((number for number, word in enumerate(command) if word.endswith(".py")), None)
    if place is None or not Path(command[place]).is_file():
        what = " ".join(command) or "nothing"
        raise UserError("verify --", f"got {what!r}, in which no script is found", "give the command that starts it: train.py ARGS")
    return command[place], list(command[place + 1 :])


def _seen(folder: Path, ranks: int, args: argparse.Namespace, script: str, options: Sequence[str]) -> list[list[StepSeen]]:
    """What each rank did. One process takes as many steps as the ranks take together. Raises UserError if the script fails."""
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "--"]  # --: not its own options
    start = torchrun if ranks > 1 else ["-m"]
    steps = args.steps * args.procs if ranks == 1 else args.steps
    probe = ["harness.tools.script_probe", str(folder), str(steps), script, *options]
    status = run(Command((sys.executable, *start, *probe), ENVIRON))
    files = [folder / f"rank-{rank}.json" for rank in range(ranks)]
    if status or not all(file.is_file() for file in files):
        raise UserError("verify --", f"{script} on {ranks} ranks ended with status {status}", "its own output says why")
    seen = [msgspec.convert(json.loads(file.read_text()), list[StepSeen]) for file in files]
    if not all(seen):
        at = f"{script} took no optimizer step on {ranks} ranks"
        raise UserError("verify --", at, "give one that trains by torch's optimizers")
    return seen


def _told(found: Sequence[Finding], args: argparse.Namespace) -> int:
    for one in found:
        echo(f"{one.verdict:<8}{one.what:<10} {one.text}")
    wrong = [one.what for one in found if one.verdict == "differs"]
    result = f"differs in {', '.join(wrong)}" if wrong else "nothing differs"
    echo(f"verified on {args.procs} ranks, {args.steps} steps: {result}")
    return int(bool(wrong))
