"""widebatch bench RUN.yaml: the user's own recipe on several worlds: weak and strong scaling, where the time goes, a record."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.plan.config import Config
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import add_settings, parse
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.stats.scaling import KINDS, Kind, Speed, panels, speed, table, to_json, told_windows
from launch.asking import dataset, run_parser
from launch.command import Command, accelerate_file, worker_command
from launch.commands import COMMANDS
from launch.folder import run_files, write
from launch.jobs import Job, run_jobs
from launch.local import gpu_count

WINDOWS = 6
"""Windows of a trial at least; the first, which warms up, is not counted."""


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
        """What starts it."""
        return worker_command(sys.executable, str(self.folder), self.world)

    def speed(self) -> Speed | None:
        """What was measured; None while it is not over."""
        journal = self.folder / "events.jsonl"
        windows = told_windows(journal.read_text()) if journal.is_file() else None
        return None if windows is None else speed(self.kind, self.world.size, self.plan.global_batch, windows)


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = run_parser("bench", COMMANDS["bench"])
    parser.add_argument("--gpus", default="1", metavar="1,2,4,8", help="numbers of GPUs to measure; 0: CPU ranks, see --procs")
    parser.add_argument("--procs", default="1,2", metavar="1,2", help="numbers of CPU ranks with --gpus 0")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each world (default 60)")
    parser.add_argument("--out", type=Path, help="folder of the measurement (default runs/NAME-bench); what is done there is kept")
    add_settings(parser)
    args, settings = parse(parser, argv)
    if args.steps < WINDOWS:
        raise UserError("--steps", f"is {args.steps}", f"give at least {WINDOWS}")
    worlds = _worlds(args)
    out: Path = (args.out or Path("runs") / f"{args.run.stem}-bench").resolve()
    trials = _trials(load(args.run, settings), worlds, args.steps, out)
    for one in trials:
        _prepare(one)
    if not _run(trials):
        done = sum(t.speed() is not None for t in trials)
        print(f"stopped with {done} of {len(trials)} worlds done; the same command goes on")
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

    Raises UserError where the batch does not divide.
    """
    first, last = plan(config, worlds[0], dataset(config)), worlds[-1].size
    share = first.global_batch // worlds[0].size
    found: list[tuple[Kind, World, int]] = [("weak", w, share * w.size) for w in worlds]
    found += [("strong", w, share * last) for w in worlds if len(worlds) > 1]
    trials = []
    for kind, world, batch in found:
        folder = out / "trials" / f"{kind if world.size < last else 'weak'}-{world.size}"
        c = _config(config, batch, min(first.micro_batch, share), steps, folder)
        trials.append(Trial(kind, world, c, plan(c, world, dataset(c)), folder))
    return trials


def _config(config: Config, batch: int, micro: int, steps: int, folder: Path) -> Config:
    """The run file of a trial: the recipe as it is, at one batch, for so many steps, nothing evaluated or sent."""
    return replace(
        config,
        batch=replace(config.batch, per_gpu=None, total=batch, micro=micro, last="drop"),
        scaling=replace(config.scaling, rule="none", warmup_epochs=None, warmup_samples=0, warmup_fraction=None),
        schedule=replace(config.schedule, shape="constant", epochs=None, samples=batch * (steps + 1)),
        eval=replace(config.eval, every_epochs=None, every_samples=None),
        checkpoint=replace(config.checkpoint, every_epochs=None, every_samples=None),
        watch=replace(config.watch, wandb="off", trackers=(), use=(), against=None, every_steps=max(steps // WINDOWS, 1)),
        run=replace(config.run, dir=str(folder), stop_after_steps=steps),
    )


def _prepare(one: Trial) -> None:
    """Write what the workers read. Raises UserError where the folder holds a trial of other settings."""
    files = run_files(one.config, one.plan) | {"accelerate.yaml": accelerate_file(one.plan, one.world)}
    kept = one.folder / "trial.yaml"
    if kept.exists() and kept.read_text() != files["run.yaml"]:
        raise UserError("--out", f"{one.folder} holds a trial of other settings", "give another folder, or remove that one")
    if one.speed() is None:
        write(one.folder, files | {"trial.yaml": files["run.yaml"]}, dry=False)


def _run(trials: Sequence[Trial]) -> bool:
    """Run what is not done, one after the other; whether all is. Raises UserError where one fails."""
    waiting = {t.folder.name: t for t in trials if t.speed() is None}
    failed: list[tuple[Trial, int]] = []

    def ended(job: Job, status: int) -> bool:
        found = waiting[job.name].speed()
        if found is None:
            if status < 128:
                failed.append((waiting[job.name], status))
            return False
        print(f"{job.name}: {found.samples_per_s_per_device:,.1f} samples/s per device", flush=True)
        return True

    run_jobs([Job(name, t.command, t.folder / "logs" / "trial.log") for name, t in waiting.items()], 1, ended)
    if failed:
        one, status = failed[0]
        log = one.folder / "logs" / "trial.log"
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise UserError("bench", f"{one.folder.name} ended with status {status}: {last}", f"see {log}; the same command goes on")
    return all(t.speed() is not None for t in trials)


def _finish(trials: Sequence[Trial], out: Path, command: str) -> None:
    """Print and write table, plot and record."""
    from harness.watch.plot import save

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
    (out / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(rows)
    (out / "table.txt").write_text(text + "\n")
    print(f"\n{text}\n\n{save(panels(rows), out / 'bench')}")
    print(f"record: {out / 'bench.json'}, for `launch --bench`; efficiency in a run: --watch.baseline {record['baseline']:.6g}")
