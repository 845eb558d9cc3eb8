"""A sweep as a Slurm job array: task i is the i-th of the runs that are not done, in the order of `widebatch sweep --list`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.plan.world import World
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import make_inside
from launch.cluster.slurm import sbatch_script
from launch.cluster.slurm_submit import asked_job, send
from launch.lab.trials import Trial

ARRAY = "array"
"""Folder of a sweep whose entry i leads to the run of task i."""


def submit_trials(args: argparse.Namespace, trials: Sequence[Trial], out: Path) -> int:
    """Write the script, and submit it if asked to. `trials`: those to run, their run files written. Raises UserError."""
    if args.gpus not in ((0,), (1,)):
        raise UserError(
            "--gpus",
            f"is {','.join(map(str, args.gpus))}, and with --slurm each run of a sweep has one GPU",
            "give 1, or 0 for the CPU",
        )
    if not trials:
        echo("every run is done; the same command without --slurm shows the results")
        return 0
    folder = (out / ARRAY).resolve() if len(trials) > 1 else trials[0].folder
    script = sbatch_script(asked_job(args, len(trials)), World(1, 1, "gpu" if args.gpus[0] else "cpu"), folder, sys.executable)
    for number, one in enumerate(trials):
        make_inside(RunFolder(one.folder).logs, "--out")
        if len(trials) > 1:
            _link(folder / str(number), one.folder)
    return send(script, folder, submit=args.submit)


def _link(path: Path, to: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(to, path.parent))
