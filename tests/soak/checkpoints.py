"""1,000 damaged checkpoints and 100 full disks: every one is seen, and the last good checkpoint loads.

`python -m tests.soak.checkpoints` takes a minute or two, prints a table and writes configs/results/checkpoints.json. Seeds are the
numbers of the trials. Half of the disks are full from a system call on that the seed chooses, half by the kernel's RLIMIT_FSIZE;
and 200 saves are killed at a system call. Each of these is a child process, whose save needs more than there is or lasts: a first
save, which nothing befalls, tells by which calls it changes the disk.
"""

import json
import os
import random
import resource
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from harness.checkpoint.reader import newest
from tests.dist.test_checkpoint import killed_at, same
from tests.support.faults.calls import install
from tests.support.faults.checkpoints import damage, save
from tests.support.processes import ROOT

CORRUPTIONS, DISKS, KILLS = 1000, 100, 200
ELEMENTS = 900
LARGEST = 3000
"""Bytes that no file of a save of so many elements may be limited to and still be whole."""
OUT = ROOT / "configs" / "results" / "checkpoints.json"


def corrupted(whole: Path, folder: Path, seed: int) -> tuple[str, str]:
    """(kind of damage, outcome) of one trial: the newer of two checkpoints is damaged."""
    shutil.copytree(whole, folder)
    what = damage(folder / "samples-000000000128", random.Random(seed))  # noqa: S311  to be repeated
    found, complaints = newest(str(folder))
    good = found is not None and found.state.samples == 64 and same(found, 64) and len(complaints) == 1
    shutil.rmtree(folder)
    return f"{what.split()[0]} in {what.split()[-1].split('-')[0].split('.')[0]}", "fell back" if good else "FAILED"


def calls_of(folder: Path, elements: int) -> list[str]:
    """The calls by which a save in a child changes the disk, in order."""
    save(str(folder), 64)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        real = os.write
        made = install("count", 0)
        save(str(folder), 128, elements=elements)
        real(writer, " ".join(made).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        calls = told.read().split()
    os.waitpid(child, 0)
    shutil.rmtree(folder)
    return calls


def filled(folder: Path, seed: int, calls: list[str]) -> tuple[str, str]:
    """(how the disk was full, outcome) of one trial: a good checkpoint, then a save in a child for whom the disk is full.

    `calls` are those of a save: the disk is full before the last of them that needs room.
    """
    rng = random.Random(seed)  # noqa: S311  to be repeated
    last = max(number for number, name in enumerate(calls, 1) if name in ("mkdir", "open", "write"))
    save(str(folder), 64)
    by_kernel = bool(seed % 2)
    child = os.fork()
    if child == 0:
        try:
            if by_kernel:
                most = rng.randrange(0, LARGEST)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            else:
                install("full", rng.randint(1, last))
            save(str(folder), 128, elements=ELEMENTS)
        except OSError:
            os._exit(7)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found, complaints = newest(str(folder))
    sound = status == 7 and found is not None and not complaints and found.state.samples == 64 and same(found, 64)
    shutil.rmtree(folder)
    return f"{'RLIMIT_FSIZE' if by_kernel else 'ENOSPC'}, refused", "last good loads" if sound else "FAILED"


def killed(folder: Path, seed: int, calls: list[str]) -> tuple[str, str]:
    """(what, outcome) of one trial: a save, which makes these calls, is killed at one of them."""
    save(str(folder), 64)
    over = killed_at(str(folder), 128, 1 + seed % len(calls))
    found, complaints = newest(str(folder))
    sound = not over and found is not None and not complaints and same(found, found.state.samples)
    shutil.rmtree(folder)
    return f"killed at {calls[seed % len(calls)]}", "good one loads" if sound else "FAILED"


def main() -> None:
    """Run all and write the record."""
    table: dict[str, Counter[tuple[str, str]]] = {"corruptions": Counter(), "full disks": Counter(), "kills": Counter()}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        save(str(folder / "whole"), 64)
        save(str(folder / "whole"), 128)
        for seed in range(CORRUPTIONS):
            table["corruptions"][corrupted(folder / "whole", folder / "trial", seed)] += 1
        calls = calls_of(folder / "trial", ELEMENTS)
        for seed in range(DISKS):
            table["full disks"][filled(folder / "trial", seed, calls)] += 1
        calls = calls_of(folder / "trial", 300)
        for seed in range(KILLS):
            table["kills"][killed(folder / "trial", seed, calls)] += 1
    rows = []
    for what, counts in table.items():
        for (kind, outcome), number in sorted(counts.items()):
            rows.append({"trials": what, "kind": kind, "outcome": outcome, "number": number})
            print(f"{what:12} {kind:28} {outcome:16} {number:5}")
    failed = sum(row["number"] for row in rows if row["outcome"] == "FAILED")  # type: ignore[misc]
    OUT.write_text(json.dumps({"command": "python -m tests.soak.checkpoints", "failed": failed, "rows": rows}, indent=1))
    print(f"{failed} failed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
