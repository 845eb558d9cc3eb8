"""What a rank measures over a window besides the steps' own rows: kept on the device, reduced over ranks and read back once.

Nothing here grows with the number of ranks: what meets is one sum and one maximum, each of the same length on any world.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from harness.engine.engine import COLUMNS
from harness.engine.ledger import Ledger, Number
from harness.parts.stamps import Stamp, seconds, stamp
from harness.stats.ranks import HIGHS, SUMS, highs_of, met, sums_of
from harness.stats.rows import HostRow, NoiseSums, NormRow, Reading, StepRow

GIB = 2.0**30
_LOCAL = 2
_NOISE = 3
_NORMS = len(fields(NormRow))
_APPLIED = COLUMNS.index("applied")


@final
class Meters:
    """One rank's sums of a window. `labels` name the groups of parameters whose norms are measured."""

    def __init__(self, device: torch.device, rank: int, processes: int, labels: Sequence[str]) -> None:
        self.device, self.rank, self.processes, self.labels = device, rank, processes, list(labels)
        self.rows = Ledger(device, len(COLUMNS))
        self._local = Ledger(device, _LOCAL)
        self._noise = Ledger(device, _NOISE)
        self.norms = torch.full((len(self.labels), _NORMS), float("nan"), dtype=torch.float64, device=device)
        self.syncs = 0
        self.computed = 0
        self._stamps: list[Stamp] = [stamp(device)]
        self._waits: list[tuple[Stamp, Stamp]] = []
        self.waits_known = processes == 1

    def step_done(self, local: Sequence[Number]) -> None:
        """A step is over; `local` begins with this rank's own loss and count. Alone, the rows hold them."""
        if self.processes > 1:
            self._local.add(local[:_LOCAL])
        self._stamps.append(stamp(self.device))

    def waited(self, first: Stamp, second: Stamp) -> None:
        """Other ranks were waited for between two stamps."""
        self._waits.append((first, second))

    def add_noise(self, small_square: Number, norm: Number, bad: Number) -> None:
        """A full step's squared gradient norm at the small batch, and its norm at the whole one; a `bad` step adds nothing."""
        self._noise.add((small_square, norm, bad))

    def _noise_sums(self) -> Tensor:
        """Squares at the small batch, at the whole one, and the number of steps, summed over the finite steps: float64 [3]."""
        if not self._noise.rows:
            return torch.zeros(_NOISE, dtype=torch.float64, device=self.device)
        small, norm, bad = self._noise.read().unbind(1)
        found = torch.stack([small, norm**2, torch.ones_like(small)], 1)
        return torch.where(((bad == 0) & found.isfinite().all(1))[:, None], found, 0.0).sum(0)

    def read(
        self, data_wait_s: float, troubles: int, moment: Tensor, copies: int, flags: tuple[float, float] = (0.0, 0.0)
    ) -> Reading:
        """All ranks' window: `rows` [steps, columns] are equal on all; the rest meets, and all of it is read in one copy."""
        host, rows = self._host(data_wait_s, troubles, flags), self.rows.read()
        rows[:, _APPLIED] = 1 - rows[:, _APPLIED]  # the steps wrote down whether they were bad
        local = self._local.read() if self.processes > 1 else rows[:, :_LOCAL]
        sums, highs = self._packed(host, local.sum(0), moment)
        if self.processes > 1:
            works = [dist.all_reduce(sums, async_op=True), dist.all_reduce(highs, dist.ReduceOp.MAX, async_op=True)]
            for work in works:
                work.wait()
        told = torch.cat([rows.flatten(), sums, highs]).tolist()
        self.syncs += 1
        steps = [StepRow(*told[i * len(COLUMNS) : (i + 1) * len(COLUMNS)]) for i in range(len(rows))]
        laps = [seconds(a, b) for a, b in zip(self._stamps, self._stamps[1:], strict=False)]
        first, last = rows.numel(), rows.numel() + len(sums)
        reading = self._reading(steps, told[first:last], told[last:], laps, copies)
        self._reset()
        return reading

    def _host(self, data_wait_s: float, troubles: int, flags: tuple[float, float]) -> HostRow:
        """This rank's row. Stamps are read here: the steps they belong to have been enqueued, and are waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wait = sum(seconds(a, b) for a, b in self._waits) if self.waits_known else math.nan
        spent = seconds(self._stamps[0], self._stamps[-1])
        busy = spent - (0.0 if math.isnan(wait) else wait) - data_wait_s
        counts = (float(self.computed), float(troubles), *flags)
        return HostRow(data_wait_s, wait, busy, rss_gib(), *_gpu_memory(self.device), *counts)

    def _packed(self, host: HostRow, local: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """What meets in the sum, and what in the maximum: float64 on the device. `local` is this rank's own [loss, count].

        A loss that is not a number has no place in a maximum, so it is counted in the sum. A rank that counted nothing has no say.
        """
        mean = local[:1] / local[1:]
        unknown = torch.isnan(mean) & (local[1:] > 0)
        numbers = torch.tensor(sums_of(host) + highs_of(host, self.rank), dtype=torch.float64)
        numbers = numbers.to(self.device, non_blocking=True)
        sums = torch.cat([self._noise_sums(), moment.double().reshape(1), unknown.double(), numbers[:SUMS], self.norms.flatten()])
        return sums, torch.cat([mean.nan_to_num(-math.inf, math.inf, -math.inf), numbers[-HIGHS:]])

    def _reading(self, steps: list[StepRow], sums: list[float], highs: list[float], laps: list[float], copies: int) -> Reading:
        """The numbers, sorted. Shards' squares add up; where `copies` ranks hold the same, they are counted once."""
        small, big, taken = (value / self.processes for value in sums[:_NOISE])
        moment, unknown = sums[_NOISE], sums[_NOISE + 1]
        squares = [value / copies for value in sums[_NOISE + 2 + SUMS :]]
        known = not unknown and highs[0] > -math.inf
        return Reading(
            steps=steps,
            loss_max_rank=highs[0] if known else math.nan,
            ranks=met(sums[_NOISE + 2 : _NOISE + 2 + SUMS], highs[1:], self.processes),
            syncs=self.syncs,
            noise=NoiseSums(small, big, taken, moment / copies),
            norms={label: NormRow(*squares[i * _NORMS : (i + 1) * _NORMS]) for i, label in enumerate(self.labels)},
            laps_s=laps,
        )

    def _reset(self) -> None:
        self.norms.fill_(float("nan"))
        self.syncs, self.computed = 0, 0
        self._stamps, self._waits = [stamp(self.device)], []


@cache
def _statm() -> tuple[int, float]:
    """(the open file that tells this process's pages, GiB of a page). Opened once: a window's reading is worth no more."""
    return os.open("/proc/self/statm", os.O_RDONLY), os.sysconf("SC_PAGE_SIZE") / GIB


def rss_gib() -> float:
    """Resident memory of this process."""
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
