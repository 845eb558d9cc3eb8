"""Samples -> batches, where each sample is fetched by the user's own code: what cannot be read is left out by id and told.

Worker processes may fetch ahead. Each has a pipe of its own, so that one that dies or hangs is found, with the samples that it was
at. (torch's DataLoader tells of a dead worker by an exception anywhere in the training thread, waits for a hung one for ever, and
names no sample.) A lost worker is replaced; what it was at is fetched again sample by sample, and a sample that ends or hangs its
worker once more is left out.
"""

import os
import random
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import torch.multiprocessing as multiprocessing

from harness.plan.errors import UserError

AHEAD = 2
"""Batches that each worker has before it, the one it is at included."""
Collate = Callable[[list[Any]], Any]


@runtime_checkable
class MapStyle(Protocol):
    """A data set with a length and integer indexing, as torch's map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Fetched:
    """What came of some samples: a batch of those at the places `kept`, and (place, why) of those that could not be read.

    `batch` is None where none could be, and a list of samples where no batch was asked for.
    """

    batch: Any
    kept: tuple[int, ...]
    bad: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Task:
    """Samples to fetch as one batch (`collate` false: as they are), those in `skip` left out.

    `seed` is what random numbers are drawn from meanwhile.
    """

    ids: tuple[int, ...]
    seed: int
    skip: frozenset[int] = frozenset()
    collate: bool = True


class LostError(Exception):
    """A worker died or hung. The text is to follow "a data worker"."""


def fetch(data: MapStyle, collate: Collate, task: Task) -> Fetched:
    """Read samples here. Raises UserError where the recipe does, or where what was read makes no batch."""
    random.seed(task.seed)
    np.random.seed(task.seed % 2**32)
    torch.default_generator.manual_seed(task.seed % 2**63)
    samples, kept, bad = [], [], []
    for place, number in enumerate(task.ids):
        if number in task.skip:
            continue
        try:
            samples.append(data[number])
            kept.append(place)
        except UserError:
            raise
        except Exception as e:  # noqa: BLE001  whatever a decoder raises is told of its sample
            bad.append((place, f"{type(e).__name__}: {_line(e)}"))
    if not task.collate or not samples:
        return Fetched(samples or None, tuple(kept), tuple(bad))
    try:
        batch = collate(samples)
    except UserError:
        raise
    except Exception as e:
        at = f"samples {named(task.ids)} make no batch ({type(e).__name__}: {_line(e)})"
        raise UserError("recipe.use", at, "give samples of equal shape, or a collate of the recipe's own") from e
    return Fetched(batch, tuple(kept), tuple(bad))


def _line(e: Exception) -> str:
    return (str(e).strip().splitlines() or ["no message"])[0]


def named(ids: Sequence[int], most: int = 8) -> str:
    """Ids as text; of many the first."""
    more = f" and {len(ids) - most:,} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + more


@final
class Worker:
    """One process that fetches: tasks go in, what came of them comes out in the same order."""

    def __init__(self, data: MapStyle, collate: Collate, before: Sequence["Worker"]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, far = context.Pipe()
        ours = [self.pipe, *(worker.pipe for worker in before)]
        self.process = context.Process(target=_serve, args=(far, ours, data, collate, os.getpid()), daemon=True)
        self.process.start()
        far.close()

    def take(self, timeout_s: float) -> Fetched:
        """The next answer. Raises LostError, after which this worker is gone, or the UserError that the worker met."""
        try:
            ready = wait([self.pipe, self.process.sentinel], timeout_s)
            if self.pipe in ready:
                answer = self.pipe.recv()
            else:
                raise LostError(self._end() if ready else f"gave nothing for {timeout_s:g} s")
        except (EOFError, OSError) as e:
            raise LostError(self._end()) from e
        if isinstance(answer, UserError):
            raise answer
        assert isinstance(answer, Fetched)  # noqa: S101  there is nothing else that a worker sends
        return answer

    def _end(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, ours: Sequence[Connection], data: MapStyle, collate: Collate, parent: int) -> None:
    """A worker's life. Signals to the group are the training process's to answer; when that is gone, this goes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for end in ours:
        end.close()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(fetch(data, collate, task))
        except UserError as e:
            pipe.send(e)
        except (TypeError, ValueError, AttributeError, RuntimeError) as e:  # what pickling raises
            at = f"what collate makes of samples {named(task.ids)} cannot be handed over ({type(e).__name__}: {_line(e)})"
            pipe.send(UserError("recipe.use", at, "give tensors, arrays and plain data, or workers: 0"))


def _end_with(parent: int) -> None:
    """End this process when `parent` is no longer its parent, even where its own work hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _end_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


@final
class Pool:
    """Workers that fetch tasks ahead, in order. `lost` is told of each that must be replaced, and may raise to end it all."""

    def __init__(self, data: MapStyle, collate: Collate, workers: int, timeout_s: float, lost: Callable[[str], None]) -> None:
        self._data, self._collate, self._timeout_s, self._lost = data, collate, timeout_s, lost
        self._workers: list[Worker] = []
        for _ in range(workers):
            self._workers.append(Worker(data, collate, self._workers))
        self.close = weakref.finalize(self, _end_all, self._workers)
        """Ends all workers; called by itself when the pool is dropped, and at the interpreter's end."""

    def ahead(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Fetched]]:
        """What came of each task, in order."""
        source, count = iter(tasks), len(self._workers)
        waiting: deque[tuple[int, Task]] = deque()
        done: dict[Task, Fetched] = {}
        given = 0
        while True:
            while len(waiting) < AHEAD * count and (task := next(source, None)) is not None:
                waiting.append((given % count, task))
                self._give(given % count, task)
                given += 1
            if not waiting:
                return
            slot, task = waiting.popleft()
            if task not in done:
                try:
                    done[task] = self._workers[slot].take(self._timeout_s)
                except LostError as e:  # what it had done, too, cannot be had any more
                    lost = [task, *(later for at, later in waiting if at == slot)]
                    self._lost(f"a data worker {e} at samples {named([i for each in lost for i in each.ids], 16)}")
                    self._replace(slot)
                    done |= {each: self._singly(slot, each) for each in lost}
            yield task, done.pop(task)

    def _give(self, slot: int, task: Task) -> None:
        try:
            self._workers[slot].pipe.send(task)
        except OSError:  # it is gone, which is told when its answer is due
            return

    def _replace(self, slot: int) -> None:
        self._workers[slot].kill()
        others = self._workers[:slot] + self._workers[slot + 1 :]
        self._workers[slot] = Worker(self._data, self._collate, others)

    def _singly(self, slot: int, task: Task) -> Fetched:
        """Fetch samples of which one may have ended a worker one by one, to find it."""
        samples: list[Any] = []
        kept: list[int] = []
        bad: list[tuple[int, str]] = []
        for place, number in enumerate(task.ids):
            if number in task.skip:
                continue
            self._give(slot, Task((number,), task.seed, collate=False))
            try:
                one = self._workers[slot].take(self._timeout_s)
            except LostError as e:
                self._replace(slot)
                bad.append((place, f"its data worker {e}"))
                continue
            bad += [(place, why) for _, why in one.bad]
            samples += one.batch or []
            kept += [place] * len(one.kept)
        batch = self._collate(samples) if samples and task.collate else samples or None
        return Fetched(batch, tuple(kept), tuple(bad))
