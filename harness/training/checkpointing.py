"""The checkpoints of a run by all its ranks: when one is due, what it held training up, and what became of it.

A save begins at the same step on all ranks and is written beside training. The ranks hear of a failure in the window's reading,
which is reduced anyway; they wait for one another only before the next save and at the end of the run.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from harness.checkpoint import reader as checkpoint
from harness.checkpoint.staging import Staging, check_types
from harness.checkpoint.storage import LocalStore
from harness.checkpoint.train_state import State
from harness.checkpoint.writer_process import Task
from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.distributed.process_group import agree, gather
from harness.engine.extra_state import extra_state
from harness.engine.interface import Engine
from harness.plan.checkpoint_interval import cadence
from harness.supervision.held import HeldFolder
from harness.telemetry.events import Event, Noticed, Saved
from harness.training.saves import Places, Saves
from harness.training.window_report import WindowReporter

ROUND_S = 5.0
"""How long a rank waits for its own writer before the ranks exchange how far theirs are: well below any group's timeout."""

UNSEEN_ROUNDS = 12
"""For how many rounds rank 0 looks for the files of other ranks after all of them have written."""
_LOST = "a rank was lost while it was being written"
_ABANDONED = "another rank could not write"
_UNSEEN = "the files of other ranks are not visible here: checkpoint.dir must be shared by all nodes"


@dataclass(frozen=True)
class _Job:
    """A save in progress. `done`: this rank's part is safe; on rank 0, all is committed."""

    state: State
    block_s: float
    done: bool = False
    problem: str = ""
    path: str = ""
    left: str = ""
    bytes: int = 0
    write_s: float = 0.0
    told: bool = False


def _moment(state: State) -> tuple[int, int]:
    """What identifies a state within the run: after a roll-back the same sample counts occur again, with other weights."""
    return state.samples, state.guard.rollbacks


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite, by the writer's check, which skips types of 8 bits."""
    looked_at = (tensor.is_floating_point() or tensor.is_complex()) and tensor.element_size() > 1
    return not looked_at or bool(torch.isfinite(tensor).all())


def _held(where: str) -> HeldFolder | None:
    """The place of checkpoints where it is a folder, created if missing. Raises UserError if it cannot be opened."""
    store = checkpoint.store_at(where)
    if not isinstance(store, LocalStore):
        return None
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        return HeldFolder(store.root)
    except OSError as e:
        raise UserError("checkpoint.dir", f"{where!r} cannot be used: {e.strerror}", "give a folder that can be written") from e


@final
class Saver(Saves):
    """Saves a run, into its run folder or where `checkpoint.dir` says; `state` is the one it resumes from.

    Raises UserError if it cannot be opened.
    """

    def __init__(
        self, engine: Engine, config: Config, folder: Path, reporter: WindowReporter, facts: Mapping[str, Any], state: State | None
    ) -> None:
        self._engine, self._config, self._teller, self._facts = engine, config, reporter, dict(facts)
        self._saved_at = None if state is None else _moment(state)
        self._folder, self._place = folder, _held(RunFolder(folder).checkpoints(config))
        self._where = self._place.inside if self._place else RunFolder(folder).checkpoints(config)
        self._held, self._watched = [self._place] if self._place else [], list[HeldFolder]()
        self._cadence = cadence(config.checkpoint)
        self._token = agree(f"{time.time_ns():x}")
        self._jobs = 0
        self._job: _Job | None = None
        self._staging = Staging(engine.device)
        self._at_s = time.monotonic()
        self._cost_s: float | None = None
        self._write_s = 0.0
        self._waited_s = 0.0
        self._complained = self._left = False
        self._problem = self._name = ""
        check_types(engine.model)
        extra_state(engine.model)  # refuses, before training, state that no checkpoint can hold
        self._exempt = tuple(f"model/{name}" for name, b in engine.model.named_buffers() if not _finite(b))

    @property
    @override
    def saved(self) -> bool:
        return self._saved_at is not None

    @property
    @override
    def due(self) -> bool:
        interval = self._cadence.interval_s(self._cost_s, self._write_s)
        return self._engine.rank == 0 and interval is not None and time.monotonic() - self._at_s >= interval

    @property
    @override
    def lost(self) -> bool:
        return self._place is not None and self._place.removed

    @property
    @override
    def failed(self) -> bool:
        self._listen(0.0)
        return self._job is not None and bool(self._job.problem)

    @override
    def hear(self, failures: float, *, first: bool) -> list[Event]:
        if failures or first:
            events = self.settle()
            if first:
                self._watch()
                with suppress(OSError):  # what fails now is tried again, and reported, when it is needed
                    self._staging.prepare(self._engine.pieces())
            return events
        self._listen(0.0)
        job = self._job
        if job is None or job.told or not job.path:
            return []
        self._job = replace(job, told=True)
        return self._told(job)

    def _watch(self) -> None:
        """From now on `moved` checks whether the run's folders are where they were."""
        if self._engine.rank == 0:
            with suppress(OSError):  # a run may have none
                self._held.insert(0, HeldFolder(self._folder))
            self._watched = list(self._held)

    @property
    @override
    def places(self) -> Places:
        folder = next((Path(held.inside) for held in self._held if held is not self._place), self._folder)
        return Places(folder, self._where)

    @override
    def moved(self, state: State) -> list[Event]:
        found = [held for held in self._watched if held.moved()]
        if not found:
            return []
        self._watched = [held for held in self._watched if held not in found]
        end = "no further checkpoint can be written, so the run stops" if self.lost else "the run continues"
        return [Noticed(state.step, state.samples, "moved", f"{found[0].moved()}: {end}")]

    @override
    def save(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        """Nothing happens if this state is saved already."""
        if self._saved_at == _moment(state):
            return
        yield from self.settle()
        with self._teller.clock.pause("checkpoint"), self._engine.heartbeat.phase("checkpoint"):
            self._begin(state, self._facts | dict(judged))
        self._saved_at = _moment(state)
        if self._staging.problem and not self._complained:
            self._complained = True
            yield Noticed(state.step, state.samples, "checkpoint_memory", self._staging.problem)

    @override
    def add_evaluation(self, state: State, judged: Mapping[str, Any]) -> Iterator[Event]:
        yield from self.settle()
        if self._saved_at == _moment(state) and self._name:
            try:
                document = {"state": state.to_json(), "about": self._facts | dict(judged)}
                checkpoint.add_evaluation(self._where, self._name, document)
            except OSError as e:
                yield Noticed(state.step, state.samples, "checkpoint_failed", f"{self._name} was saved without its evaluation: {e}")

    @override
    def missing(self, state: State) -> str:
        return "" if self._saved_at == _moment(state) else self._problem or "none was written"

    @override
    def settle(self) -> list[Event]:
        begin = time.monotonic()
        with self._teller.clock.pause("checkpoint"), self._engine.heartbeat.phase("checkpoint"):
            events = self._settle()
        self._waited_s = time.monotonic() - begin
        return events

    @override
    def regroup(self, state: State) -> tuple[bool, list[Event]]:
        """Rank 0 knows whether the last one is committed. One that is not lacks the part of a lost rank, or may."""
        self._listen(0.0)
        job, self._job = self._job, None
        committed = job is None or bool(job.path)
        committed, saved_at = json.loads(agree(json.dumps((committed, self._saved_at if committed else None))))
        self._saved_at = None if saved_at is None else (saved_at[0], saved_at[1])
        self._token = agree(f"{time.time_ns():x}")
        self._facts["world_size"] = self._engine.processes
        if job is not None and not (committed and job.done):
            self._staging.drop()
        if committed:
            return False, [] if job is None or job.told or not job.path else self._told(job)
        self._problem = _LOST
        return True, [Noticed(state.step, state.samples, "checkpoint_failed", f"checkpoint not written: {_LOST}")]

    @override
    def close(self) -> None:
        self._staging.close(busy=self._job is not None and not self._job.done)
        for held in self._held:
            held.close()

    def _begin(self, state: State, about: Mapping[str, Any]) -> None:
        """Copy the state, and start the writer."""
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
            lineage=state.lineage,
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
        """Wait until every rank's writer has finished. All ranks call it, and gather in rounds, so that they leave together."""
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
            if others and everyone[0][0]:
                self._job = None
                return self._over(job, problems)
        return []

    def _over(self, job: _Job, problems: list[str]) -> list[Event]:
        """The events about a save that all writers have finished; `problems` are what went wrong on any rank."""
        if problems:
            text = next((p for p in problems if _ABANDONED not in p), problems[0])
            s, self._saved_at, self._problem = job.state, None, text
            return [Noticed(s.step, s.samples, "checkpoint_failed", f"checkpoint not written: {text}")]
        return [] if job.told or not job.path else self._told(job)

    def _listen(self, limit_s: float) -> None:
        """Read the messages of this rank's writer, until it has finished or `limit_s` is over."""
        while self._job is not None and not self._job.done:
            line = self._staging.told(limit_s)
            if line is None:
                return
            if "problem" in line:
                self._job = replace(self._job, done=True, problem=self._shown(line["problem"]))
            elif "path" in line:
                self._write_s = line["write_s"]
                path, left = self._shown(line["path"]), self._shown(line["left"])
                self._job = replace(self._job, done=True, path=path, left=left, bytes=line["bytes"], write_s=line["write_s"])
            elif self._engine.rank > 0:
                self._job = replace(self._job, done=True)

    def _shown(self, text: str) -> str:
        """`text` with the place of checkpoints as the user gave it."""
        return self._place.shown(text) if self._place else text

    def _told(self, job: _Job) -> list[Event]:
        """The events about a checkpoint that is committed; the reporter takes note of it."""
        self._name = job.path.rpartition("/")[2]
        self._teller.saved(job.state.samples, job.block_s, job.bytes)
        events: list[Event] = [Saved(job.state.step, job.state.samples, job.path, job.block_s, job.bytes, job.write_s)]
        if job.left and not self._left:
            events.append(Noticed(job.state.step, job.state.samples, "checkpoint_left", f"{job.left}; tried again at each save"))
        self._left = bool(job.left)
        return events
