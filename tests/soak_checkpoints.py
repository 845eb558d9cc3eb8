"""1,000 damaged checkpoints and 100 full disks: every one is seen, and the last good checkpoint loads.

`python -m tests.soak_checkpoints` takes a minute or two, prints a table and writes configs/results/checkpoints.json. Seeds are the
numbers of the trials. Half of the disks are full from a system call on that the seed chooses, half by the kernel's RLIMIT_FSIZE;
and 200 saves are killed at a system call. Each of these is a child process.
"""

import json
import os
import random
import resource
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from harness.engine.checkpoint import newest
from tests.dist.processes import ROOT
from tests.faults.calls import install
from tests.faults.checkpoints import damage, save
from tests.test_checkpoint import killed_at, same

CORRUPTIONS, DISKS, KILLS = 1000, 100, 200
OUT = ROOT / "configs" / "results" / "checkpoints.json"


def corrupted(whole: Path, folder: Path, seed: int) -> tuple[str, str]:
    """(kind of damage, outcome) of one trial: the newer of two checkpoints is damaged."""
    shutil.copytree(whole, folder)
    what = damage(folder / "samples-000000000128", random.Random(seed))  # noqa: S311  to be repeated
    found, complaints = newest(str(folder))
    good = found is not None and found.state.samples == 64 and same(found, 64) and len(complaints) == 1
    shutil.rmtree(folder)
    return f"{what.split()[0]} in {what.split()[-1].split('-')[0].split('.')[0]}", "fell back" if good else "FAILED"


def filled(folder: Path, seed: int) -> tuple[str, str]:
    """(how the disk was full, outcome) of one trial: a good checkpoint, then a save in a child for whom the disk is full."""
    rng = random.Random(seed)  # noqa: S311  to be repeated
    save(str(folder), 64)
    by_kernel = bool(seed % 2)
    child = os.fork()
    if child == 0:
        try:
            if by_kernel:
                most = rng.randrange(0, 3000)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            else:
                install("full", rng.randrange(1, 30))
            save(str(folder), 128, elements=900)
        except OSError:
            os._exit(7)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found, complaints = newest(str(folder))
    sound = found is not None and not complaints and found.state.samples == (64 if status == 7 else 128)
    sound = sound and found is not None and same(found, found.state.samples, 300 if status == 7 else 900)
    shutil.rmtree(folder)
    kind = "RLIMIT_FSIZE" if by_kernel else "ENOSPC"
    return f"{kind}, {'refused' if status == 7 else 'room enough'}", "last good loads" if sound and status in (0, 7) else "FAILED"


def killed(folder: Path, seed: int) -> tuple[str, str]:
    """(what, outcome) of one trial: a save is killed at a system call."""
    save(str(folder), 64)
    over = killed_at(str(folder), 128, 1 + seed % 50)
    found, complaints = newest(str(folder))
    sound = found is not None and not complaints and same(found, found.state.samples)
    sound = sound and found is not None and (found.state.samples == 128 or not over)
    shutil.rmtree(folder)
    return "over before" if over else "killed in a save", "good one loads" if sound else "FAILED"


def main() -> None:
    """Run all and write the record."""
    table: dict[str, Counter[tuple[str, str]]] = {"corruptions": Counter(), "full disks": Counter(), "kills": Counter()}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        save(str(folder / "whole"), 64)
        save(str(folder / "whole"), 128)
        for seed in range(CORRUPTIONS):
            table["corruptions"][corrupted(folder / "whole", folder / "trial", seed)] += 1
        for seed in range(DISKS):
            table["full disks"][filled(folder / "trial", seed)] += 1
        for seed in range(KILLS):
            table["kills"][killed(folder / "trial", seed)] += 1
    rows = []
    for what, counts in table.items():
        for (kind, outcome), number in sorted(counts.items()):
            rows.append({"trials": what, "kind": kind, "outcome": outcome, "number": number})
            print(f"{what:12} {kind:28} {outcome:16} {number:5}")
    failed = sum(row["number"] for row in rows if row["outcome"] == "FAILED")  # type: ignore[misc]
    OUT.write_text(json.dumps({"command": "python -m tests.soak_checkpoints", "failed": failed, "rows": rows}, indent=1))
    print(f"{failed} failed")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
