"""The checkpoints of a run by all its ranks: when one is due, what it held training up, and what became of it.

A save begins at the same step on all ranks and is written beside training. The ranks hear of a failure in the window's reading,
which is reduced anyway; they wait for one another only before the next save and at the end of the run.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from harness.engine.checkpoint import store_at
from harness.engine.engine import Engine
from harness.engine.process import agree, gather
from harness.engine.staging import Staging
from harness.engine.state import State
from harness.engine.writer import Task
from harness.plan.cadence import cadence
from harness.plan.config import Config
from harness.stats.events import Event, Noticed, Saved
from harness.telling import Teller

ROUND_S = 5.0
"""How long ranks wait for their own writer before they tell one another how far it is: well below any group's timeout."""

UNSEEN_ROUNDS = 12
"""Rounds in which all other ranks have written, after which rank 0 no longer looks for their files."""
_ABANDONED = "another rank could not write"
_UNSEEN = "the files of other ranks are not to be seen here: checkpoint.dir must be a place that all nodes share"


@dataclass(frozen=True)
class _Job:
    """A save in progress. `done`: this rank's part is safe; on rank 0, all is committed."""

    state: State
    block_s: float
    done: bool = False
    problem: str = ""
    path: str = ""
    bytes: int = 0
    write_s: float = 0.0
    told: bool = False


def _moment(state: State) -> tuple[int, int]:
    """What tells a state from others of the run: after a return to a checkpoint the same samples come again, but not as before."""
    return state.samples, state.guard.rollbacks


def place(config: Config, folder: Path) -> str:
    """Where a run's checkpoints lie."""
    return config.checkpoint.dir or str(folder / "checkpoints")


class Saves(ABC):
    """The checkpoints of a run. All ranks call the methods at the same step."""

    @property
    @abstractmethod
    def saved(self) -> bool:
        """Whether there is, or will be, a checkpoint of this run."""

    @property
    @abstractmethod
    def due(self) -> bool:
        """Whether it is time to save, by rank 0's clock: False on all others."""

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether this rank could not write, which the others do not know yet."""

    @abstractmethod
    def hear(self, failures: float, *, first: bool) -> list[Event]:
        """At the close of a window: what there is to tell. `failures`: how many ranks said `failed` in its reading.

        After the `first` step all state is there: memory is got for it, beside what goes on.
        """

    @abstractmethod
    def save(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        """Tell what became of the last checkpoint, then begin one of `state`. `judged`: its score, and whether the run is well."""

    @abstractmethod
    def settle(self) -> list[Event]:
        """Wait until all ranks are through with the checkpoint in progress; what became of it."""

    @abstractmethod
    def close(self) -> None:
        """End the writer, when the run is over or has failed."""


@final
class Unsaved(Saves):
    """A run without a folder keeps nothing."""

    saved = due = failed = False

    def hear(self, failures: float, *, first: bool) -> list[Event]:
        """See Saves.hear."""
        return []

    def save(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        """See Saves.save."""
        return iter(())

    def settle(self) -> list[Event]:
        """See Saves.settle."""
        return []

    def close(self) -> None:
        """See Saves.close."""


@final
class Saver(Saves):
    """Saves a run, into its run folder or where `checkpoint.dir` says; `state` is the one it goes on from.

    Raises UserError where there is no way to it.
    """

    def __init__(
        self, engine: Engine, config: Config, folder: Path, teller: Teller, facts: Mapping[str, Any], state: State | None
    ) -> None:
        self._engine, self._config, self._teller, self._facts = engine, config, teller, dict(facts)
        self._saved_at = None if state is None else _moment(state)
        self._where = place(config, folder)
        store_at(self._where)
        self._cadence = cadence(config.checkpoint)
        self._token = agree(f"{time.time_ns():x}")
        self._jobs = 0
        self._job: _Job | None = None
        self._staging = Staging(engine.device)
        self._at_s = time.monotonic()
        self._cost_s: float | None = None
        self._write_s = 0.0
        self._waited_s = 0.0
        self._complained = False
        self._exempt = tuple(
            f"model/{name}" for name, b in engine.model.named_buffers() if b.is_floating_point() and not torch.isfinite(b).all()
        )

    @property
    def saved(self) -> bool:
        """See Saves.saved."""
        return self._saved_at is not None

    @property
    def due(self) -> bool:
        """See Saves.due."""
        interval = self._cadence.interval_s(self._cost_s, self._write_s)
        return self._engine.rank == 0 and interval is not None and time.monotonic() - self._at_s >= interval

    @property
    def failed(self) -> bool:
        """See Saves.failed."""
        self._listen(0.0)
        return self._job is not None and bool(self._job.problem)

    def hear(self, failures: float, *, first: bool) -> list[Event]:
        """See Saves.hear."""
        if failures or first:
            events = self.settle()
            if first:
                with suppress(OSError):  # what cannot be had now is asked for again when it is needed, and missed then
                    self._staging.prepare(self._engine.pieces())
            return events
        self._listen(0.0)
        job = self._job
        if job is None or job.told or not job.path:
            return []
        self._job = replace(job, told=True)
        return [self._told(job)]

    def save(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        """See Saves.save. A state that is saved already is not saved again."""
        if self._saved_at == _moment(state):
            return
        yield from self.settle()
        self._saved_at = _moment(state)
        with self._teller.clock.pause("checkpoint"), self._engine.pulse.phase("checkpoint"):
            self._begin(state, self._facts | dict(judged))
        if self._staging.problem and not self._complained:
            self._complained = True
            yield Noticed(state.step, state.samples, "checkpoint_memory", self._staging.problem)

    def settle(self) -> list[Event]:
        """See Saves.settle."""
        begin = time.monotonic()
        with self._teller.clock.pause("checkpoint"), self._engine.pulse.phase("checkpoint"):
            events = self._settle()
        self._waited_s = time.monotonic() - begin
        return events

    def close(self) -> None:
        """See Saves.close."""
        self._staging.close(busy=self._job is not None and not self._job.done)

    def _begin(self, state: State, about: Mapping[str, Any]) -> None:
        """Copy the state, and set the writer to work."""
        begin, keep = time.monotonic() - self._waited_s, self._config.checkpoint
        self._engine.sync_buffers()
        task = Task(
            where=self._where,
            samples=state.samples,
            job=f"{self._token}-{self._jobs}",
            rank=self._engine.rank,
            ranks=self._engine.processes,
            state=json.dumps({"state": state.to_json(), "about": about}, indent=1) if self._engine.rank == 0 else "",
            keep=keep.keep,
            keep_best=keep.keep_best,
            exempt=self._exempt,
        )
        problem = ""
        try:
            self._staging.take(self._engine.pieces(), task)
        except OSError as e:
            problem = f"rank {task.rank}: {e}"
        self._jobs += 1
        self._at_s, self._waited_s = time.monotonic(), 0.0
        self._cost_s = self._at_s - begin
        self._job = _Job(state, self._cost_s, done=bool(problem), problem=problem)

    def _settle(self) -> list[Event]:
        rounds = 0
        while self._job is not None:
            self._listen(ROUND_S)
            job = self._job
            everyone = gather((job.done, job.problem))
            problems = [text for _, text in everyone if text]
            others = all(done for done, _ in everyone[1:])
            rounds += others
            if self._engine.rank == 0 and not job.done and (problems or rounds > UNSEEN_ROUNDS):
                self._staging.abandon(_ABANDONED if problems else _UNSEEN)
            if not (others and everyone[0][0]):
                continue
            self._job = None
            if problems:
                text = next((p for p in problems if _ABANDONED not in p), problems[0])
                s, self._saved_at = job.state, None
                return [Noticed(s.step, s.samples, "checkpoint_failed", f"checkpoint not written: {text}")]
            return [] if job.told or not job.path else [self._told(job)]
        return []

    def _listen(self, limit_s: float) -> None:
        """Take over what this rank's writer says, until it is through or `limit_s` is up."""
        while self._job is not None and not self._job.done:
            line = self._staging.told(limit_s)
            if line is None:
                return
            if "problem" in line:
                self._job = replace(self._job, done=True, problem=line["problem"])
            elif "path" in line:
                self._write_s = line["write_s"]
                self._job = replace(self._job, done=True, path=line["path"], bytes=line["bytes"], write_s=line["write_s"])
            elif self._engine.rank > 0:
                self._job = replace(self._job, done=True)

    def _told(self, job: _Job) -> Saved:
        """The event of a checkpoint that is committed; the teller takes note of it."""
        self._teller.saved(job.state.samples, job.block_s, job.bytes)
        return Saved(job.state.step, job.state.samples, job.path, job.block_s, job.bytes, job.write_s)
