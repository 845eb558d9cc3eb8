"""widebatch launch --slurm: the run folder and its sbatch script, and with --submit the job."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.run_folder import RunFolder
from harness.plan.plan import plan
from harness.plan.run_files import run_files
from harness.plan.world import World
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import make_inside
from harness.watch.plan_table import print_plan
from launch.cluster.slurm import Job, sbatch_script
from launch.options.run_options import dataset, run_folder
from launch.processes.run_folder import own_place, write
from launch.processes.spawn import answer

SCRIPT = "job.sbatch"
MOST_RUNS = 10_000
GROUP = "slurm"


def add_slurm(parser: argparse.ArgumentParser, *, arrays: bool = True) -> None:
    """The flags of this file; without `arrays` those of a command that makes its own."""
    group = parser.add_argument_group(GROUP)
    group.add_argument("--slurm", action="store_true", help=f"write {SCRIPT} into the run folder, start nothing")
    group.add_argument("--submit", action="store_true", help="write the script and submit it")
    group.add_argument("--job-name", metavar="NAME", help="name of the job (default: the run file's)")
    group.add_argument("--partition", metavar="NAME[,NAME]", help="Slurm partition")
    group.add_argument("--time", metavar="TIME", help="time limit: minutes, hours:minutes:seconds, days-hours")
    group.add_argument("--account", metavar="NAME", help="Slurm account that is charged")
    group.add_argument("--qos", metavar="NAME", help="quality of service")
    group.add_argument("--cpus-per-task", type=int, metavar="N", help="CPU cores for each rank")
    signal = "seconds before the time limit at which the run saves and is queued again (default: 120)"
    group.add_argument("--signal-s", type=int, metavar="S", default=120, help=signal)
    group.add_argument("--restarts", type=int, metavar="N", default=3, help="how often failed workers start again (default: 3)")
    if arrays:
        each = "a job array with a run for each value; given again, for each combination"
        array = f"{each}: --array optim.lr=0.1,0.2 --array run.seed=0,1"
        group.add_argument("--array", metavar="SETTING=V,V", action="append", default=[], help=array)
    group.add_argument("--at-once", type=int, metavar="N", help="how many runs of the array may run at the same time")


def check_slurm(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether a job is wanted. Raises UserError for a flag of this file without --slurm, and for a job without --gpus."""
    wanted = bool(args.slurm or args.submit)
    group = next(g for g in parser._action_groups if g.title == GROUP)
    for action in group._group_actions:
        if not wanted and getattr(args, action.dest) != action.default:
            raise UserError(action.option_strings[0], "is for a Slurm job", "give --slurm too")
    if wanted and args.gpus is None:
        raise UserError(
            "--gpus", "missing, and this machine does not know the GPUs of the cluster", "give those of all nodes, or 0"
        )
    return wanted


def asked_job(args: argparse.Namespace, tasks: int) -> Job:
    """The job of so many runs that the flags describe. Raises UserError."""
    return Job(
        name=args.job_name or args.run.stem,
        partition=args.partition,
        time=args.time,
        account=args.account,
        qos=args.qos,
        cpus_per_task=args.cpus_per_task,
        signal_s=args.signal_s,
        restarts=args.restarts,
        tasks=tasks,
        at_once=args.at_once,
    )


def submit(args: argparse.Namespace, settings: Mapping[str, str], world: World) -> int:
    """Plan every run, write the folder and the script, submit it if asked to. Raises UserError."""
    members = list(combinations(args.array))
    config = load(args.run, {**settings, **members[0]})
    folder = run_folder(config, args.run)
    job = replace(asked_job(args, len(members)), interface=args.interface)
    script = sbatch_script(job, world, folder, sys.executable)
    size = dataset(config)
    files: dict[Path, dict[str, str]] = {}
    for number, member in enumerate(members):
        config = load(args.run, {**settings, **member})
        place = folder / str(number) if len(members) > 1 else folder
        if len(members) > 1:
            config = own_place(config, place, member=str(number))
        else:
            config = replace(config, run=replace(config.run, dir=str(place)))
        planned = plan(config, world, size)
        files[place] = run_files(config, planned)
        if member:
            echo(f"\nrun {number}: " + ", ".join(f"{name} {value}" for name, value in member.items()))
        print_plan(planned)
    named = (config.recipe.use, config.optim.name, config.scaling.rule, *config.watch.use)
    own = [name.rpartition(":")[0] for name in named if "/" in name]
    if own:
        echo(f"\nthese files are not copied: every node reads {', '.join(own)}, and the files beside them, at the same path")
    return _write(files, folder, script, args)


def _write(files: Mapping[Path, dict[str, str]], folder: Path, script: str, args: argparse.Namespace) -> int:
    for place, texts in files.items():
        write(place, texts, dry=args.dry_run)
        if not args.dry_run:
            # Slurm does not create the folder of its log, and the job would fail without a message
            make_inside(RunFolder(place).logs)
    return send(script, folder, submit=args.submit and not args.dry_run, dry=args.dry_run)


def send(script: str, folder: Path, *, submit: bool, dry: bool = False) -> int:
    """Write the script into a folder, or print it; say how to submit it, or do so. Raises UserError."""
    write(folder, {SCRIPT: script}, dry=dry)
    command = ["sbatch", str(folder / SCRIPT)]
    echo("$ " + " ".join(command))
    if submit:
        echo(answer(command, "--submit", "run this where Slurm's sbatch is, or give --slurm to write the script only"))
    return 0


def combinations(arrays: Sequence[str]) -> Iterator[dict[str, str]]:
    """The settings of each run of the array, the last setting fastest; one empty dict without any. Raises UserError."""
    axes = []
    for text in arrays:
        name, _, values = text.partition("=")
        several = values.split(",")
        if "." not in name or not all(several):
            raise UserError("--array", f"is {text!r}", "write SETTING=VALUE,VALUE such as optim.lr=0.1,0.2")
        axes.append([(name, value) for value in several])
    total = 1
    for axis in axes:
        total *= len(axis)
    if total > MOST_RUNS:
        raise UserError("--array", f"asks for {total} runs", f"give {MOST_RUNS} at most")
    yield from (dict(chosen) for chosen in product(*axes))
