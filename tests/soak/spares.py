"""What a spare saves: python -m tests.soak.spares [--kills 5] [--backends zero2 fsdp ddp].

Two ranks, of which one is killed, without and with restart.spares, in turn. Seconds count from the kill until all ranks of the next
start have begun the second step: by then the first has ended. `starting` are those of them from the first process of the new start
until then: what the spare shortens; the rest is noticing the fault and ending the others. The record:
configs/results/spares.json.
"""

import argparse
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness.watch.git_info import commit
from tests.dist.test_spare import RANKS, next_start, spare_of
from tests.support.faults.clock import began_s
from tests.support.faults.launching import Launch, run_file
from tests.support.processes import ROOT


def kills(folder: Path, backend: str, spares: int, count: int) -> list[dict[str, float]]:
    """The seconds of each kill in one run."""
    folder.mkdir()
    sections: dict[str, Any] = {"backend": {"name": backend}, "restart": {"spares": spares, "budget": count}}
    launch, found = Launch(run_file(folder, epochs=1000, pace_ms=30, **sections), RANKS), []
    try:
        pids = launch.at_step(8)
        if spares:
            spare_of(launch)
        for _ in range(count):
            os.kill(pids[1], signal.SIGKILL)
            began = time.monotonic()
            pids = next_start(launch, pids, ticks=2)
            seconds, first = time.monotonic() - began, min(pids, key=began_s) if spares else launch.agent(pids[0])
            found.append({"s": round(seconds, 2), "starting_s": round(began + seconds - began_s(first), 2)})
            next_start(launch, [], ticks=12)  # past a checkpoint
    finally:
        launch.end()
    return found


def main() -> None:
    """Kill, and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["zero2", "fsdp", "ddp"])
    parser.add_argument("--out", type=Path, default=Path("configs/results/spares.json"))
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="spares-"))
    record: dict[str, Any] = {"commit": str(commit(ROOT))[:12], "load": [], "backends": {}}
    for backend in args.backends:
        record["backends"][backend] = {}
        for name, spares in (("without", 0), ("with", 1)):
            record["load"].append(round(os.getloadavg()[0], 1))
            found = kills(root / f"{backend}-{spares}", backend, spares, args.kills)
            record["backends"][backend][name] = {
                "s": {"median": median(k["s"] for k in found), "max": max(k["s"] for k in found)},
                "starting_s": {"median": median(k["starting_s"] for k in found), "max": max(k["starting_s"] for k in found)},
                "kills": found,
            }
            print(backend, name, record["backends"][backend][name], flush=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
