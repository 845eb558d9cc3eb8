"""Samples -> batches, where each sample is fetched by the user's own code: what cannot be read is left out and reported by id.

Worker processes may fetch ahead. Each has a pipe of its own, so that one that dies or hangs is found, with the samples that it was
at. (torch's DataLoader reports a dead worker by an exception anywhere in the training thread, waits for a hung one for ever, and
names no sample.) A lost worker is replaced; what it was at is fetched again sample by sample, and a sample that ends or hangs its
worker once more is left out.
"""

import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, final, runtime_checkable

import torch
import torch.multiprocessing as multiprocessing
from torch.utils.data import default_collate

from harness.config.errors import UserError
from harness.config.user_errors import BugError, QuitError, explain, is_bug, is_quit, summary
from harness.config.user_errors import place as place_of
from harness.data.seeding import PROBE, collate_seed, drawn_since_probe, sample_seed, seed_host
from harness.supervision.temporary_folders import own_workers_folder

AHEAD = 2
"""Prefetch: batches that each worker holds, the one it works on included."""
Collate = Callable[[list[Any]], Any]


@runtime_checkable
class MapStyle(Protocol):
    """A data set with a length and integer indexing, as torch's map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class Batched(Protocol):
    """A data set that gives many samples at once, as those of Hugging Face and torch's Subset do."""

    def __getitems__(self, indices: list[int], /) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Fetched:
    """What came of some samples: a batch of those at the places `kept`, and (place, why) of those that could not be read.

    `batch` is None if none could be, and a list of samples where no batch was asked for.
    """

    batch: Any
    kept: tuple[int, ...]
    bad: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Task:
    """Samples to fetch as one batch (`collate` false: as they are), those in `skip` left out.

    `seed` is the run's, `start` the stream position of the first: what random numbers are drawn from meanwhile.
    """

    ids: tuple[int, ...]
    seed: int
    start: int
    skip: frozenset[int] = frozenset()
    collate: bool = True


class LostError(Exception):
    """A worker died or hung. The text is written so that it can follow "a data worker"."""


@final
class Reader:
    """Reads samples in this process. Where reading draws random numbers, each sample has its own: they follow from its place in
    the stream, however the stream is cut into batches.

    Seeding costs about 10 us, more than many a sample. So it begins only when a batch is found to have drawn something; that
    batch is read again.
    """

    def __init__(self, data: MapStyle, collate: Collate) -> None:
        self._data, self._collate = data, collate
        self._draws = False
        self._batched = data if isinstance(data, Batched) else None

    def fetch(self, task: Task) -> Fetched:
        """Read samples. Raises UserError if the recipe does, or what was read makes no batch; and bugs of users' code."""
        if self._draws:
            return self._read(task)
        seed_host(PROBE)
        fetched = self._read(task)
        if not drawn_since_probe():
            return fetched
        self._draws = True
        return self._read(task)

    def _read(self, task: Task) -> Fetched:
        places = [place for place, number in enumerate(task.ids) if number not in task.skip]
        found = self._at_once([task.ids[place] for place in places])
        samples, kept, bad = self._singly(task, places) if found is None else (list(found), places, [])
        if not task.collate or not samples:
            return Fetched(samples or None, tuple(kept), tuple(bad))
        if self._draws:
            seed_host(collate_seed(task.seed, task.start))
        return Fetched(_collated(self._collate, samples, task), tuple(kept), tuple(bad))

    def _at_once(self, numbers: list[int]) -> Sequence[Any] | None:
        """Samples by one call, where the data takes it; None where they must be read one by one: for each has its own random
        numbers, or one of them cannot be read. Raises UserError if the data does.
        """
        if self._batched is None or self._draws or not numbers:
            return None
        try:
            found = self._batched.__getitems__(numbers)
        except UserError:
            raise
        except Exception as e:
            if is_quit(e):
                raise
            return None
        return found if len(found) == len(numbers) else None

    def _singly(self, task: Task, places: Sequence[int]) -> tuple[list[Any], list[int], list[tuple[int, str]]]:
        """(samples, their places, what could not be read). Raises UserError if the data does, and bugs."""
        samples, kept, bad = [], [], []
        for place in places:
            if self._draws:
                seed_host(sample_seed(task.seed, task.start + place))
            try:
                samples.append(self._data[task.ids[place]])
                kept.append(place)
            except UserError:
                raise
            except Exception as e:
                if is_bug(e) or is_quit(e):
                    raise
                bad.append((place, f"{type(e).__name__}: {_line(e)}"))  # whatever a decoder raises is reported with its sample
        return samples, kept, bad


def _collated(collate: Collate, samples: list[Any], task: Task) -> Any:
    """A batch. Raises what users' own collate raised where that is a bug, else a UserError that says why there is none."""
    try:
        return collate(samples)
    except UserError:
        raise
    except Exception as e:
        if is_quit(e) or (is_bug(e) and place_of(e) and not _refused(e)):
            raise
        at = f"samples {named(task.ids)} make no batch ({summary(e)})"
        raise UserError("recipe.use", at, "give samples of tensors, numbers and text, of equal shape, or another collate") from e


def _refused(error: Exception) -> bool:
    """Whether it is torch's default_collate that cannot make a batch of the samples: the mistake is in them."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename == default_collate.__code__.co_filename


def _line(e: Exception) -> str:
    return (str(e).strip().splitlines() or ["no message"])[0]


def named(ids: Sequence[int], most: int = 8) -> str:
    """Ids as text; of many the first."""
    more = f" and {len(ids) - most:,} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + more


@final
class Worker:
    """One process that fetches: tasks go in, their results come out in the same order."""

    def __init__(self, data: MapStyle, collate: Collate, before: Sequence["Worker"]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, far = context.Pipe()
        ours = [self.pipe, *(worker.pipe for worker in before)]
        self.process = context.Process(target=_serve, args=(far, ours, data, collate, os.getpid()), daemon=True)
        self.process.start()
        far.close()

    def take(self, timeout_s: float) -> Fetched:
        """The next answer. Raises LostError, after which this worker is gone, or what it met: UserError, BugError, QuitError."""
        try:
            ready = wait([self.pipe, self.process.sentinel], timeout_s)
            if self.pipe in ready:
                answer = self.pipe.recv()
            else:
                raise LostError(self._end() if ready else f"gave nothing for {timeout_s:g} s")
        except (EOFError, OSError) as e:
            raise LostError(self._end()) from e
        if isinstance(answer, UserError | BugError | QuitError):
            raise answer
        assert isinstance(answer, Fetched)  # noqa: S101  there is nothing else that a worker sends
        return answer

    def _end(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        """Kill the worker process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, ours: Sequence[Connection], data: MapStyle, collate: Collate, parent: int) -> None:
    """A worker's life. Signals to the group are the training process's to answer; when that is gone, this goes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for end in ours:
        end.close()
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    reader = Reader(data, collate)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        answer = _answer(reader, task)
        try:
            pipe.send(answer)
        except (pickle.PicklingError, TypeError, ValueError, AttributeError, RuntimeError) as e:
            if "No space left" in str(e):
                at = f"cannot hand a batch over: /dev/shm is full ({_line(e)})"
                pipe.send(UserError("recipe.workers", at, "free it, enlarge it (docker: --shm-size=8g), or give workers: 0"))
                continue
            at = f"the batch of samples {named(task.ids)} cannot be sent to the training process ({type(e).__name__}: {_line(e)})"
            pipe.send(UserError("recipe.use", at, "give tensors, arrays and plain data, or workers: 0"))


def _answer(reader: Reader, task: Task) -> Fetched | UserError | BugError | QuitError:
    """The result of a task, pickled for the training process."""
    try:
        return reader.fetch(task)
    except UserError as e:
        return e
    except Exception as e:  # noqa: BLE001  the training process raises it
        if is_quit(e):
            return QuitError("a data worker has no terminal to debug in: set recipe.workers to 0")
        return BugError(explain(e))


def end_with(parent: int) -> None:
    """End this process when `parent` is no longer its parent, even where its own work hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _end_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()


@final
class Pool:
    """Workers that fetch tasks ahead, in order. `lost` is called for each that must be replaced, and may raise to end the run."""

    def __init__(self, data: MapStyle, collate: Collate, workers: int, timeout_s: float, lost: Callable[[str], None]) -> None:
        self._data, self._collate, self._timeout_s, self._lost = data, collate, timeout_s, lost
        self._workers: list[Worker] = []
        own_workers_folder()
        for _ in range(workers):
            self._workers.append(Worker(data, collate, self._workers))
        self.close = weakref.finalize(self, _end_all, self._workers)
        """Ends all workers; called automatically when the pool is dropped, and at the interpreter's end."""

    def ahead(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Fetched]]:
        """The results of the tasks, in order."""
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
                except LostError as e:  # batches that it had finished are lost, too
                    lost = [task, *(later for at, later in waiting if at == slot)]
                    self._lost(f"a data worker {e} at samples {named([i for each in lost for i in each.ids], 16)}")
                    self._replace(slot)
                    done |= {each: self._singly(slot, each) for each in lost}
            yield task, done.pop(task)

    def _give(self, slot: int, task: Task) -> None:
        try:
            self._workers[slot].pipe.send(task)
        except OSError:  # the worker is gone, which is noticed when its answer is due
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
            self._give(slot, replace(task, ids=(number,), start=task.start + place, collate=False))
            try:
                one = self._workers[slot].take(self._timeout_s)
            except LostError as e:
                self._replace(slot)
                bad.append((place, f"its data worker {e}"))
                continue
            bad += [(place, why) for _, why in one.bad]
            samples += one.batch or []
            kept += [place] * len(one.kept)
        seed_host(collate_seed(task.seed, task.start))
        batch = _collated(self._collate, samples, task) if samples and task.collate else samples or None
        return Fetched(batch, tuple(kept), tuple(bad))
