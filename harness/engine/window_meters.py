"""What a rank measures over a window besides the steps' own rows: kept on the device, reduced over ranks and read back once.

Nothing here grows with the number of ranks: one sum and one maximum are reduced, each of the same length on any world.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import cache, lru_cache
from itertools import pairwise
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from harness.engine.device_scalars import DeferredScalars, Number, filled
from harness.modeling.device_timer import Stamp, seconds, stamp
from harness.telemetry.cpu_wait import CpuWait
from harness.telemetry.measurements import HostRow, NoiseSums, NormRow, Reading, StepRow
from harness.telemetry.node_metrics import NO_NODE, NodeRow
from harness.telemetry.rank_reduction import HIGHS, SUMS, highs_of, met, sums_of

GIB = 2.0**30
_LOCAL = 2
_NOISE = 4
_MOMENT = 3
_NORMS = len(fields(NormRow))


@final
class Meters:
    """One rank's sums of a window. `labels` name the groups of parameters whose norms are measured."""

    def __init__(self, device: torch.device, rank: int, processes: int, labels: Sequence[str]) -> None:
        self.device, self.rank, self.processes, self.labels = device, rank, processes, list(labels)
        self.rows = DeferredScalars(device)
        self._local = DeferredScalars(device)
        self._noise = DeferredScalars(device)
        self._unmeasured = torch.full((self.cells,), float("nan"), dtype=torch.float64, device=device)
        self._no_noise = torch.zeros(_NOISE, dtype=torch.float64, device=device)
        self._squares = self._unmeasured
        self._layouts: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        self.syncs = 0
        self.computed = 0
        self._stamps: list[Stamp] = [stamp(device)]
        self._waits: list[tuple[Stamp, Stamp]] = []
        self.waits_known = processes == 1
        self._cpu_wait = CpuWait()

    @property
    def cells(self) -> int:
        """How many squares are measured: NormRow's, each label by label, then the three of the optimizer's first moment."""
        return _NORMS * len(self.labels) + _MOMENT

    def begin(self) -> None:
        """The window's time begins now."""
        self._stamps = [stamp(self.device)]

    def regroup(self, rank: int, processes: int) -> None:
        """The ranks are others. Steps that are not read yet stay; noise that was measured over the old ranks is dropped."""
        self.rank, self.processes = rank, processes
        self._noise.take()
        self._waits = []

    def step_done(self, local: Sequence[Number]) -> None:
        """A step is over; `local` begins with this rank's own loss and count. Alone, the rows hold them."""
        if self.processes > 1:
            self._local.add(local[:_LOCAL])
        self._stamps.append(stamp(self.device))

    def stop_asked(self) -> bool:
        """Whether the last step's row says that a rank was asked to stop."""
        _, _, stop, *_ = self.rows.last()
        self.syncs += isinstance(stop, Tensor)
        return float(stop) > 0

    def waited(self, first: Stamp, second: Stamp) -> None:
        """Note that this rank waited for others between two time stamps."""
        self._waits.append((first, second))

    def add_noise(self, small: tuple[Number, Number], count: Number, norm: Number, bad: Number) -> None:
        """Add a full step's (squared norm of the small batch's summed gradient, its items), the whole step's items and the norm of
        its gradient. A `bad` step adds nothing."""
        self._noise.add((*small, count, norm, bad))

    def add_norms(self, labels: Tensor, found: Tensor, moments: int, grads: Tensor | None, decay: Tensor | None) -> None:
        """The norms after a window's last step, as UpdateNorms.norms has them with `moments` moments of the optimizer at the end.

        `labels` int64 [parameters] says whose is whose; `grads` are the norms of gradients, [parameters], None if the backend
        keeps those to itself; `decay` [2] is NoiseSums' moment_decay and decay_square, None if no decay is coupled.
        """
        found = found.to(self.device, torch.float64)
        if grads is not None:
            found = torch.cat([found, grads.to(found)])
        blank, places = self._layout(labels, moments, known=grads is not None)
        self._squares = blank.index_add(0, places, found.square_())
        if decay is not None:
            self._squares[1 - _MOMENT :] = decay

    def _layout(self, labels: Tensor, moments: int, *, known: bool) -> tuple[Tensor, Tensor]:
        """(no squares yet, to which of them each norm belongs): float64 [cells], int64 [norms]. Gradients not `known` are NaN."""
        if (moments, known) not in self._layouts:
            count = len(self.labels)
            blank = torch.zeros(self.cells, dtype=torch.float64, device=self.device)
            blank[3 * count : 4 * count] = 0.0 if known else math.nan
            last = torch.full((moments,), self.cells - _MOMENT, device=self.device)
            parts = [labels, labels + count, labels + 2 * count, last, *([labels + 3 * count] if known else [])]
            self._layouts[moments, known] = blank, torch.cat(parts)
        return self._layouts[moments, known]

    def read(
        self, data_wait_s: float, troubles: int, copies: int, flags: tuple[float, float] = (0.0, 0.0), node: NodeRow = NO_NODE
    ) -> Reading:
        """All ranks' window: the steps' rows are equal on all ranks; the rest is reduced, and everything is copied to the host at
        once.

        `copies` ranks hold the same of weights and moments; `node` is the newest sample of this rank's node, where it measures it.
        """
        host, rows = self._host(data_wait_s, troubles, flags, node), self.rows.rows
        cells = self.rows.cells(rows)
        numbers = [self._noise_sums(), self._squares]
        told, highs = self._alone(host, cells, numbers) if self.processes == 1 else self._met(host, rows, [cells, *numbers])
        self.syncs += 1
        first, last = len(cells), len(cells) + _NOISE + self.cells
        steps = [_step_row(row) for row in filled(rows, told[:first])]
        if self.processes == 1:
            good = [s for s in steps if math.isfinite(s.loss_sum)]
            loss, count = sum([s.loss_sum for s in good]), sum([s.count for s in good])
            highs = [loss / count if count else math.nan, *highs]
        laps = [seconds(a, b) for a, b in pairwise(self._stamps)]
        reading = self._reading(steps, told[first:last], told[last:], highs, (laps, host), copies)
        self._reset()
        return reading

    def _alone(self, host: HostRow, cells: Tensor, numbers: list[Tensor]) -> tuple[list[float], list[float]]:
        """(sums, maxima) as `_met` gives them, for a process without other ranks."""
        return torch.cat([cells, *numbers]).tolist() + sums_of(host), highs_of(host, self.rank)

    def _met(self, host: HostRow, rows: list[Sequence[Number]], numbers: list[Tensor]) -> tuple[list[float], list[float]]:
        """As `_alone`, reduced over all ranks; the maxima begin with the ranks' own mean losses over the steps of finite loss.

        A rank that counted nothing is left out; NaN if all did.
        """
        good = self.rows.whole([row[:1] for row in rows]).isfinite()
        loss, count = torch.where(good, self._local.whole(self._local.rows), 0.0).sum(0).unbind()
        mean = loss / count
        own = torch.tensor(sums_of(host) + highs_of(host, self.rank), dtype=torch.float64).to(self.device, non_blocking=True)
        cells, *numbers = numbers
        sums = torch.cat([*numbers, own[:SUMS]])
        highs = torch.cat([mean.nan_to_num(-math.inf, math.inf, -math.inf).view(1), own[SUMS:]])
        works = [dist.all_reduce(sums, async_op=True), dist.all_reduce(highs, dist.ReduceOp.MAX, async_op=True)]
        for work in works:
            work.wait()
        told = torch.cat([highs, cells, sums]).tolist()
        highest = told[: 1 + HIGHS]
        if highest[0] == -math.inf:
            highest[0] = math.nan
        return told[1 + HIGHS :], highest

    def _noise_sums(self) -> Tensor:
        """NoiseSums' small_square, share_square, big_square and steps, summed over the finite steps: float64 [4]."""
        rows = self._noise.rows
        if not rows:
            return self._no_noise
        small, items, count, norm, bad = self._noise.whole(rows).unbind(1)
        found = torch.stack([small / count**2, (items / count) ** 2, norm**2, torch.ones_like(norm)], 1)
        return torch.where(((bad == 0) & found.isfinite().all(1))[:, None], found, 0.0).sum(0)

    def _host(self, data_wait_s: float, troubles: int, flags: tuple[float, float], node: NodeRow) -> HostRow:
        """This rank's row. Stamps are read here: the steps they belong to have been enqueued, and are waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wait = sum([seconds(a, b) for a, b in self._waits]) if self.waits_known else math.nan
        spent = seconds(self._stamps[0], self._stamps[-1])
        busy = spent - (0.0 if math.isnan(wait) else wait) - data_wait_s
        counts = (float(self.computed), float(troubles), *flags)
        return HostRow(data_wait_s, wait, busy, rss_gib(), *_gpu_memory(self.device), *counts, self._cpu_wait.lap(), node)

    def _reading(
        self,
        steps: list[StepRow],
        numbers: list[float],
        sums: list[float],
        highs: list[float],
        own: tuple[list[float], HostRow],
        copies: int,
    ) -> Reading:
        """The numbers, sorted. Shards' squares add up; where `copies` ranks hold the same, they are counted once.

        `own`: what this rank's steps took, and its row.
        """
        noise = [value / self.processes for value in numbers[:_NOISE]]
        values = [value / copies for value in numbers[_NOISE:]]
        squares, moment = values[:-_MOMENT], values[-_MOMENT:]
        return Reading(
            steps=steps,
            loss_max_rank=highs[0],
            ranks=met(sums, highs[1:], self.processes),
            syncs=self.syncs,
            noise=NoiseSums(*noise, *moment),
            norms={label: NormRow(*squares[i :: len(self.labels)]) for i, label in enumerate(self.labels)},
            laps_s=own[0],
            own=own[1],
        )

    def _reset(self) -> None:
        """Only now: ranks that lose one in the reduction read again."""
        for kept in (self.rows, self._local, self._noise):
            kept.take()
        self._squares = self._unmeasured
        self.syncs, self.computed = 0, 0
        self._stamps, self._waits = [stamp(self.device)], []


def _step_row(row: Sequence[float]) -> StepRow:
    """A step's row; the steps wrote down whether they were bad, and not whether they were applied."""
    loss, count, stop, norm, factor, bad, scale = row
    return StepRow(loss, count, stop, norm, factor, 1 - bad, scale)


@cache
def _statm() -> tuple[int, float]:
    """(the open file with this process's page counts, GiB per page). Opened once, to keep the reading of a window cheap."""
    return os.open("/proc/self/statm", os.O_RDONLY), os.sysconf("SC_PAGE_SIZE") / GIB


def rss_gib() -> float:
    """Resident memory of this process, from a reading that is at most a second old: reading it is slow."""
    return _rss_gib(int(time.monotonic()))


@lru_cache(maxsize=1)
def _rss_gib(second: int) -> float:
    file, page = _statm()
    return int(os.pread(file, 128, 0).split()[1]) * page


def _gpu_memory(device: torch.device) -> tuple[float, float, float, float]:
    """(peak allocated, peak reserved) in GiB since the last call, retries of the allocator, and times it ran out."""
    if device.type != "cuda":
        return 0.0, 0.0, 0.0, 0.0
    stats = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    allocated, reserved = stats["allocated_bytes.all.peak"] / GIB, stats["reserved_bytes.all.peak"] / GIB
    return allocated, reserved, float(stats["num_alloc_retries"]), float(stats["num_ooms"])
