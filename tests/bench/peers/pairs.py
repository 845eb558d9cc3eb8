"""Two loops timed in turn, milliseconds apart: blocks of the hand loop inside another harness's own data fetch.

What the machine does besides slows both alike, so their ratio stays where each time alone would not. Run as a process, or as two
under torchrun: `python -m tests.bench.peers.pairs WORK PEER MODES PAIRS BLOCK` prints a JSON line for each mode of count, plain,
log, memory (the peak of a process that runs this alone) and watch (what our watchers take).
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from harness.distributed.process_group import join, leave
from harness.plan.world import place
from tests.bench.peers import ours
from tests.bench.peers.counting import counted
from tests.bench.peers.others import OTHERS
from tests.bench.peers.work import WORKS, Hand, Work

WARM = 24
"""Steps of both before the first pair."""


class EnoughError(Exception):
    """All pairs are taken: ends a harness that has no end of its own."""


class Timing:
    """Feeds a harness, and between two of its blocks takes the hand loop's. `pairs`: CPU seconds of a block (theirs, by hand)."""

    def __init__(self, work: Work, pairs: int, block: int) -> None:
        self.hand = Hand(work, work.batches())
        self.most, self.block = pairs, block
        self.pairs: list[tuple[float, float]] = []

    def feed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, timed."""
        self.hand.steps(WARM)
        for _ in range(WARM):
            yield next(batches)
        while len(self.pairs) < self.most:
            begin = time.process_time()
            for _ in range(self.block):
                yield next(batches)
            middle = time.process_time()
            self.hand.steps(self.block)
            self.pairs.append((middle - begin, time.process_time() - middle))
        raise EnoughError


def run(work: Work, peer: str, feed: ours.Hook, log: bool) -> None:
    """Run a harness on what `feed` makes of the batches, until they end."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            if peer in ours.VARIANTS:
                ours.run(work, feed, Path(folder), log=log, **ours.VARIANTS[peer])
            else:
                OTHERS[peer](work, feed(work.batches()), Path(folder), log)
        except EnoughError:
            return


def counts(work: Work, peer: str) -> dict[str, float]:
    """What a step of a harness costs in calls, operations and waits, with its log on."""
    found = []

    def feed(batches: Iterator[Any]) -> Iterator[Any]:
        fed, cost = counted(batches)
        found.append(cost)
        yield from fed
        raise EnoughError

    run(work, peer, feed, log=True)
    return asdict(found[0]())


def peak(work: Work, peer: str, steps: int) -> dict[str, float]:
    """The most memory that this process ever had, in MiB, after some steps of this harness alone."""
    run(work, peer, lambda batches: islice(batches, steps), log=True)
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def watched(work: Work, steps: int) -> dict[str, float]:
    """What our watchers take of the training thread, in microseconds a step."""

    def feed(batches: Iterator[Any]) -> Iterator[Any]:
        yield from islice(batches, steps)

    with tempfile.TemporaryDirectory() as folder:
        return ours.watching(work, feed, Path(folder), steps)


def main(name: str, peer: str, modes: str, pairs: str, block: str) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    here, work = place(os.environ), WORKS[name]
    join(cpu=True)
    for mode in modes.split(","):
        row: dict[str, Any] = {"work": name, "processes": here.size, "peer": peer, "mode": mode}
        if mode == "count":
            row |= counts(work, peer)
        elif mode == "memory":
            row |= peak(work, peer, int(pairs))
        elif mode == "watch":
            row |= watched(work, 20 * int(pairs))
        else:
            timing = Timing(work, int(pairs), int(block))
            run(work, peer, timing.feed, mode == "log")
            row |= {"block": int(block), "pairs": timing.pairs}
        if here.rank == 0:
            print(json.dumps(row), flush=True)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
