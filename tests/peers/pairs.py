"""Two loops timed in turn, milliseconds apart: blocks of the hand loop inside another harness's own data fetch.

What the machine does besides slows both alike, so their ratio stays where each time alone would not. Run as a process of its own:
`python -m tests.peers.pairs WORK PEER LOG PAIRS BLOCK` prints one JSON line.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from tests.peers.work import WORKS, Hand, Work

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


def measure(work: Work, peer: str, log: bool, pairs: int, block: int) -> Timing:
    """Run a harness until all pairs are taken."""
    torch.set_num_threads(1)
    timing = Timing(work, pairs, block)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            if peer.startswith("widebatch"):
                from tests.peers import ours

                ours.run(work, timing.feed, Path(folder), log=log, backend=peer.partition("-")[2] or "ddp")
            else:
                from tests.peers.others import OTHERS

                OTHERS[peer](work, timing.feed(work.batches()), Path(folder), log)
        except EnoughError:
            return timing
    raise RuntimeError(f"{peer} ended before its pairs were taken")


def main(work: str, peer: str, log: str, pairs: str, block: str) -> None:
    """Measure and print."""
    timing = measure(WORKS[work], peer, log == "log", int(pairs), int(block))
    print(json.dumps({"peer": peer, "log": log == "log", "block": int(block), "pairs": timing.pairs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
