"""What a rank measures over a window besides the steps' own rows: kept on the device, reduced over ranks and read back once."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from harness.parts.stamps import Stamp, seconds, stamp
from harness.stats.rows import HostRow, NoiseSums, NormRow, Reading, StepRow

GIB = 2.0**30
_LOCAL = 2
_NOISE = 3
_NORMS = len(fields(NormRow))


@final
class Meters:
    """One rank's sums of a window. `labels` name the groups of parameters whose norms are measured."""

    def __init__(self, device: torch.device, processes: int, labels: Sequence[str]) -> None:
        self.device, self.processes, self.labels = device, processes, list(labels)
        self.local = torch.zeros(_LOCAL, dtype=torch.float64, device=device)
        self.noise = torch.zeros(_NOISE, dtype=torch.float64, device=device)
        self.norms = torch.full((len(self.labels), _NORMS), float("nan"), dtype=torch.float64, device=device)
        self.syncs = 0
        self.computed = 0
        self._stamps: list[Stamp] = [stamp(device)]
        self._waits: list[tuple[Stamp, Stamp]] = []
        self.waits_known = processes == 1

    def step_done(self, sums: Tensor) -> None:
        """A step is over; `sums` holds this rank's own [loss, count, stop]."""
        self.local += sums[:_LOCAL]
        self._stamps.append(stamp(self.device))

    def waited(self, first: Stamp, second: Stamp) -> None:
        """Other ranks were waited for between two stamps."""
        self._waits.append((first, second))

    def add_noise(self, small_square: Tensor, big_square: Tensor, good: Tensor) -> None:
        """One full step's squared gradient norms; a step that was not finite adds nothing."""
        found = torch.stack([small_square.double(), big_square.double(), torch.ones_like(big_square, dtype=torch.float64)])
        self.noise += torch.where(good & torch.isfinite(found).all(), found, 0.0)

    def read(self, rows: Tensor, columns: Sequence[str], data_wait_s: float, moment: Tensor, copies: int) -> Reading:
        """All ranks' window: `rows` [steps, columns] are equal on all; the rest meets in one gather and is read in one copy."""
        host = self._host(data_wait_s)
        mine = torch.cat([self.local, self.noise, moment.double().reshape(1), self.norms.flatten()])
        packed = torch.cat([mine, torch.tensor(host, dtype=torch.float64).to(self.device, non_blocking=True)])
        if self.processes > 1:
            each = [torch.empty_like(packed) for _ in range(self.processes)]
            dist.all_gather(each, packed)
            every = torch.cat(each)
        else:
            every = packed
        told = torch.cat([rows.flatten(), every]).tolist()
        self.syncs += 1
        steps = [StepRow(*told[i * len(columns) : (i + 1) * len(columns)]) for i in range(len(rows))]
        ranks = [told[rows.numel() + i * len(packed) :][: len(packed)] for i in range(self.processes)]
        laps = [seconds(a, b) for a, b in zip(self._stamps, self._stamps[1:], strict=False)]
        reading = self._reading(steps, ranks, laps, copies)
        self._reset()
        return reading

    def _host(self, data_wait_s: float) -> list[float]:
        """This rank's HostRow as numbers. Stamps are read here: the steps they belong to have been enqueued, and are waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wait = sum(seconds(a, b) for a, b in self._waits) if self.waits_known else math.nan
        spent = seconds(self._stamps[0], self._stamps[-1])
        busy = spent - (0.0 if math.isnan(wait) else wait) - data_wait_s
        gpu = _gpu_memory(self.device)
        return [data_wait_s, wait, busy, rss_gib(), *gpu, float(self.syncs), float(self.computed)]

    def _reading(self, steps: list[StepRow], ranks: list[list[float]], laps: list[float], copies: int) -> Reading:
        """The numbers of all ranks, sorted. Shards' squares add up; where `copies` ranks hold the same, they are counted once."""
        noise = [rank[_LOCAL : _LOCAL + _NOISE + 1] for rank in ranks]
        count, first = len(ranks), _LOCAL + _NOISE + 1
        norms = {}
        for number, label in enumerate(self.labels):
            at = first + number * _NORMS
            norms[label] = NormRow(*(sum(rank[at + i] for rank in ranks) / copies for i in range(_NORMS)))
        hosts = first + len(self.labels) * _NORMS
        return Reading(
            steps=steps,
            rank_losses=[(rank[0], rank[1]) for rank in ranks],
            hosts=[HostRow(*rank[hosts:]) for rank in ranks],
            noise=NoiseSums(
                small_square=sum(n[0] for n in noise) / count,
                big_square=sum(n[1] for n in noise) / count,
                steps=sum(n[2] for n in noise) / count,
                moment_square=sum(n[3] for n in noise) / copies,
            ),
            norms=norms,
            laps_s=laps,
        )

    def _reset(self) -> None:
        self.local.zero_()
        self.noise.zero_()
        self.norms.fill_(float("nan"))
        self.syncs, self.computed = 0, 0
        self._stamps, self._waits = [stamp(self.device)], []


def rss_gib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB


def _gpu_memory(device: torch.device) -> list[float]:
    """(peak allocated, peak reserved) in GiB since the last call, retries of the allocator, and times it ran out."""
    if device.type != "cuda":
        return [0.0, 0.0, 0.0, 0.0]
    stats = torch.cuda.memory_stats(device)
    torch.cuda.reset_peak_memory_stats(device)
    allocated, reserved = stats["allocated_bytes.all.peak"] / GIB, stats["reserved_bytes.all.peak"] / GIB
    return [allocated, reserved, float(stats["num_alloc_retries"]), float(stats["num_ooms"])]
