"""Trials: short runs of one recipe under several settings, each in a run folder of its own; what is done is not done again."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.analysis.run_outcome import Outcome, outcome
from harness.config.errors import UserError
from harness.config.loader import decode, encode, load, read_yaml
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.config.yaml_text import to_yaml
from harness.plan.world import World
from harness.supervision.safe_files import refuse_link, write_own
from launch.processes.command import Command
from launch.processes.job_pool import Job, last_line, run_jobs
from launch.processes.run_folder import own_place
from launch.processes.spawn import gpu_count, visible_gpus

STOPPED = 75
"""Status of a worker that was told to stop."""


@dataclass(frozen=True)
class Trial:
    """A run to make: its name, its resolved run file, and the folder it lives in."""

    name: str
    config: Config
    folder: Path
    steps: int | None = None
    """Stop after so many, leaving the schedule as it is."""

    @property
    def command(self) -> Command:
        """The worker alone, on this trial's run file."""
        stop = () if self.steps is None else ("--run.stop_after_steps", str(self.steps))
        return Command((sys.executable, "-m", "harness", str(RunFolder(self.folder).run_file), "--no-plan", *stop), {})

    def outcome(self) -> Outcome | None:
        """How it went, None while it is not over."""
        return outcome(RunFolder(self.folder).journal, cut=self.steps is not None)


def trial_folder(out: Path, name: str) -> Path:
    """Where the trial `name` of a tool lives. Raises UserError where a link takes its place."""
    folder = out / "trials" / name
    for path in (folder.parent, folder):
        refuse_link(path, "--out")
    return folder.resolve()


def trial(run: Path, settings: Mapping[str, str], name: str, out: Path) -> Trial:
    """The trial `name` of a run file: `settings` laid over it, nothing told to Weights & Biases unless they say so.

    Raises UserError.
    """
    quiet = {"watch.wandb": "'off'", "checkpoint.keep": "1"}
    folder = trial_folder(out, name)
    return Trial(name, own_place(load(run, quiet | dict(settings)), folder), folder)


def of_config(config: Config, name: str, out: Path, steps: int | None = None) -> Trial:
    """The trial `name` of a whole configuration, in a folder of its own."""
    folder = trial_folder(out, name)
    return Trial(name, own_place(replace(config, run=replace(config.run, stop_after_steps=None)), folder), folder, steps)


def write(trials: Sequence[Trial]) -> None:
    """Write the run file of each; raises UserError where a folder holds a trial of other settings."""
    for one in trials:
        path, tree = RunFolder(one.folder).run_file, encode(one.config)
        if path.exists():
            there = encode(decode(read_yaml(path)))
            found = next((f"{s}.{k}" for s, k in _differences(there, tree)), None)
            if found:
                at = f"{one.folder} holds a trial with another {found}"
                raise UserError("--out", at, "give another folder, or remove that one")
        else:
            one.folder.mkdir(parents=True, exist_ok=True)
            write_own(path, to_yaml(tree))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(section, setting) where two resolved run files differ, the run folder and its stop aside."""
    own = {("run", "dir"), ("run", "stop_after_steps")}
    parts = {name: part if isinstance(part, dict) else {"": part} for name, part in one.items()}
    others = {name: part if isinstance(part, dict) else {"": part} for name, part in other.items()}
    pairs = [(section, key) for section in parts for key in {**parts[section], **others[section]}]
    return [p for p in pairs if p not in own and parts[p[0]].get(p[1]) != others[p[0]].get(p[1])]


def run_trials(trials: Sequence[Trial], at_once: int, told: Callable[[Trial, Outcome], None], chain: int = 1) -> bool:
    """Run those that are not over, `at_once` at a time; whether all are over. Raises UserError if a trial failed.

    A process runs `chain` of them, one after the other. A trial that the guard stopped is over: it died, which is a result.
    """
    waiting = [one for one in trials if one.outcome() is None]
    chains = {c[0].name: c for c in (waiting[n : n + chain] for n in range(0, len(waiting), chain))}
    failed: list[tuple[Path, Trial, int]] = []

    def ended(job: Job, status: int) -> bool:
        outcomes = [(one, one.outcome()) for one in chains[job.name]]
        for one, found in outcomes:
            if found is not None:
                told(one, found)
        open_ones = [one for one, found in outcomes if found is None]
        stopped = status in (0, STOPPED) or status > 128  # stopped with a checkpoint, or killed
        if open_ones and not stopped:
            failed.append((job.log, open_ones[0], status))
        return not open_ones

    jobs = [Job(name, _command(c), RunFolder(c[0].folder).trial_log) for name, c in chains.items()]
    everything = run_jobs(jobs, at_once, ended, places(at_once))
    if failed:
        log, one, status = failed[0]
        last = last_line(log)
        raise UserError("trial", f"{one.name} ended with status {status}: {last}", f"see {log}; run the same command to resume")
    return everything and all(one.outcome() is not None for one in trials)


def _command(chain: Sequence[Trial]) -> Command:
    if len(chain) == 1:
        return chain[0].command
    return Command((sys.executable, "-m", "harness.tools.run_series", *(str(RunFolder(one.folder).run_file) for one in chain)), {})


def places(at_once: int) -> Callable[[int], Mapping[str, str]]:
    """The environment by place: a GPU each in turn, or an equal share of the CPU's cores where the user has not said."""
    gpus = gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus:
        names = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(str(n) for n in range(gpus))))
        return lambda place: {"CUDA_VISIBLE_DEVICES": names[place % len(names)]}
    threads = str(max((os.cpu_count() or 1) // at_once, 1))
    return lambda place: {} if "OMP_NUM_THREADS" in os.environ or at_once == 1 else {"OMP_NUM_THREADS": threads}


def one_device() -> World:
    """The world of a trial: one process on one device."""
    return World(1, 1, "gpu" if gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES")) else "cpu")
