"""widebatch bench RUN.yaml: the user's own recipe on several worlds: weak and strong scaling, where the time goes, a record."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.analysis.scaling_efficiency import KINDS, Kind, Speed, ended_windows, panels, remarks, speed, table, to_json
from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.config.run_folder import ACCELERATE, RUN_FILE, RunFolder
from harness.config.schema import Config, ScheduleConfig
from harness.plan.plan import Plan, plan
from harness.plan.run_files import run_files
from harness.plan.world import World
from harness.supervision.output_redirect import echo, outlive_readers, say
from launch.lab.results import LabResults
from launch.lab.trials import trial_folder
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.options.run_argument import read_run
from launch.options.run_options import dataset, run_parser
from launch.processes.command import Command, accelerate_file, worker_command
from launch.processes.job_pool import Job, last_line, run_jobs
from launch.processes.run_folder import own_place, write
from launch.processes.spawn import gpu_count

WINDOWS = 6
"""The fewest windows of a trial; the first, which warms up, is not counted."""


@dataclass(frozen=True)
class Trial:
    """One world to measure."""

    kind: Kind
    world: World
    config: Config
    plan: Plan
    folder: Path

    @property
    def command(self) -> Command:
        """The command that starts the trial."""
        return worker_command(sys.executable, str(self.folder), self.world)

    def speed(self) -> Speed | None:
        """The measured speed; None while the trial is not over."""
        journal = RunFolder(self.folder).journal
        windows = ended_windows(journal) if journal.is_file() else None
        return None if windows is None else speed(self.kind, self.world.size, self.plan.global_batch, windows)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("bench", COMMANDS["bench"])
    parser.add_argument("--gpus", default="1", metavar="1,2,4,8", help="numbers of GPUs to measure; 0: CPU ranks, see --procs")
    parser.add_argument("--procs", default="1,2", metavar="1,2", help="numbers of CPU ranks with --gpus 0")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each world (default 60)")
    parser.add_argument(
        "--out",
        type=local_path("--out"),
        help="folder of the measurement (default runs/NAME-bench); trials done there before are reused",
    )
    add_settings(parser)
    args, _, config = read_run(parser, argv)
    if args.steps < WINDOWS:
        raise UserError("--steps", f"is {args.steps}", f"give at least {WINDOWS}")
    worlds = _worlds(args)
    out: Path = (args.out or Path("runs") / f"{args.run.stem}-bench").resolve()
    trials = _trials(config, worlds, args.steps, out)
    for one in trials:
        _prepare(one)
    from harness.watch.plot_file import what_is_missing

    outlive_readers()
    if missing := what_is_missing():
        say(missing)
    if not _run(trials):
        done = sum(t.speed() is not None for t in trials)
        echo(f"stopped with {done} of {len(trials)} worlds done; run the same command to resume")
        return 1
    _finish(trials, out, " ".join(["widebatch bench", *(shlex.quote(a) for a in argv)]))
    return 0


def _worlds(args: argparse.Namespace) -> list[World]:
    """The worlds that are asked for, from small to large. Raises UserError."""
    cpu = args.gpus == "0"
    flag, text = ("--procs", args.procs) if cpu else ("--gpus", args.gpus)
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError as e:
        raise UserError(flag, f"is {text!r}", "give numbers such as 1,2,4") from e
    if sizes[0] < 1:
        raise UserError(flag, f"is {text!r}", "give numbers from 1 on, or --gpus 0 --procs 1,2")
    if not cpu and sizes[-1] > (here := gpu_count(None)):
        raise UserError("--gpus", f"{sizes[-1]} asked for, {here} here", "ask for fewer, or use --gpus 0 --procs 1,2")
    return [World(size, 1, "cpu" if cpu else "gpu") for size in sizes]


def _trials(config: Config, worlds: Sequence[World], steps: int, out: Path) -> list[Trial]:
    """Weak: the run file's share per device on each world. Strong: the largest world's batch on each; its own is the weak one's.

    Raises UserError if the batch does not divide.
    """
    first, last = plan(config, worlds[0], dataset(config)), worlds[-1].size
    share = first.global_batch // worlds[0].size
    found: list[tuple[Kind, World, int]] = [("weak", w, share * w.size) for w in worlds]
    found += [("strong", w, share * last) for w in worlds if len(worlds) > 1]
    trials = []
    for kind, world, batch in found:
        folder = trial_folder(out, f"{kind if world.size < last else 'weak'}-{world.size}")
        c = _config(config, batch, min(first.micro_batch, share), steps, folder)
        trials.append(Trial(kind, world, c, plan(c, world, dataset(c)), folder))
    return trials


def _config(config: Config, batch: int, micro: int, steps: int, folder: Path) -> Config:
    """The run file of a trial: the recipe as it is, at one batch, for so many steps, nothing evaluated or sent."""
    placed = own_place(config, folder)
    return replace(
        placed,
        batch=replace(config.batch, per_gpu=None, total=batch, micro=micro, last="drop"),
        scaling=replace(config.scaling, rule="none", warmup_epochs=None, warmup_samples=0, warmup_fraction=None),
        schedule=ScheduleConfig(samples=batch * (steps + 1)),
        eval=replace(config.eval, every_epochs=None, every_samples=None),
        checkpoint=replace(placed.checkpoint, every_epochs=None, every_samples=None),
        watch=replace(config.watch, wandb="off", trackers=(), use=(), against=None, every_steps=max(steps // WINDOWS, 1)),
        run=replace(placed.run, stop_after_steps=steps),
    )


def _prepare(one: Trial) -> None:
    """Write what the workers read. Raises UserError if the folder holds a trial with other settings."""
    files = run_files(one.config, one.plan) | {ACCELERATE: accelerate_file(one.plan, one.world)}
    kept = one.folder / "trial.yaml"
    if kept.exists() and kept.read_text() != files[RUN_FILE]:
        raise UserError("--out", f"{one.folder} holds a trial with other settings", "give another folder, or remove that one")
    if one.speed() is None:
        write(one.folder, files | {"trial.yaml": files[RUN_FILE]}, dry=False)


def _run(trials: Sequence[Trial]) -> bool:
    """Run what is not done, one after the other; whether all is. Raises UserError if one fails."""
    waiting = {t.folder.name: t for t in trials if t.speed() is None}
    failed: list[tuple[Trial, int]] = []

    def ended(job: Job, status: int) -> bool:
        found = waiting[job.name].speed()
        if found is None:
            if status < 128:
                failed.append((waiting[job.name], status))
            return False
        echo(f"{job.name}: {found.samples_per_s_per_device:,.1f} samples/s per device")
        return True

    run_jobs([Job(name, t.command, RunFolder(t.folder).trial_log) for name, t in waiting.items()], 1, ended)
    if failed:
        one, status = failed[0]
        log = RunFolder(one.folder).trial_log
        last = last_line(log)
        raise UserError(
            "bench", f"{one.folder.name} ended with status {status}: {last}", f"see {log}; run the same command to resume"
        )
    return all(t.speed() is not None for t in trials)


def _finish(trials: Sequence[Trial], out: Path, command: str) -> None:
    """Print and write table, plot and record."""
    results = LabResults(out, "bench")
    rows = [found for t in sorted(trials, key=lambda t: KINDS.index(t.kind)) if (found := t.speed()) is not None]
    first = trials[0].plan
    about = {
        "command": command,
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}",
        "device": trials[0].world.device,
        "backend": first.backend,
        "precision": first.precision,
    }
    record = to_json(rows, about)
    path = results.record(record)
    text = "\n".join([table(rows), *remarks(rows)])
    results.table(text)
    echo(f"\n{text}\n\n{results.plot(panels(rows))}")
    echo(f"record: {path}, for `launch --bench`; efficiency in a run: --watch.baseline {record['baseline']:.6g}")
