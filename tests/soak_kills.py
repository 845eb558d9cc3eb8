"""Kills at random moments, of ranks, launching processes and launchers: python -m tests.soak_kills [--kills 200] [--seed 0].

Each run takes a number of kills and must end with the losses of a run that took none, bit for bit, and with every sample trained on
once an epoch. The result is written after each run, to configs/results/kills.json.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.launching import Launch, run_file, wait_for
from tests.faults.ledger import lost_or_repeated, trained

BACKENDS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
KILLS_OF_A_RUN = 8
EPOCHS, SIZE, BATCH = 12, 64, 8
TARGETS = {"rank 0": 4, "rank 1": 4, "launching process": 1, "launcher": 1}
BEFORE_FIRST_STEP = 0.1
"""Share of kills that fall before the first step, where the launcher gives up and a person starts the run again."""


class Soak:
    """One run that is killed again and again."""

    def __init__(self, folder: Path, backend: str, seed: str, kills: int) -> None:
        folder.mkdir()
        self.rng, self.kills, self.folder = random.Random(seed), kills, folder  # noqa: S311
        self.path = run_file(
            folder, epochs=EPOCHS, size=SIZE, pace_ms=150, backend={"name": backend}, restart={"budget": 1000}, eval={}
        )
        self.found: Counter[str] = Counter()

    def run(self) -> None:
        """To the end of the run."""
        launch = Launch(self.path)
        furthest = 0
        for _ in range(self.kills):
            early = self.rng.random() < BEFORE_FIRST_STEP
            pids = self._ranks(launch, 0 if early else furthest + 1)
            if not pids:
                launch = self._again(launch)
                pids = self._ranks(launch, furthest + 1)
            time.sleep(self.rng.random() * (3.0 if early else 1.2))
            self._kill(launch, pids)
            furthest = max(furthest, *(b.step for r in (0, 1) if (b := launch.beat(r))), 0)
            if launch.process.poll() is not None:
                launch = self._again(launch)
        (self.folder / "fast").touch()
        while (status := launch.wait()) != 0:
            self.found[f"ended with {status}"] += 1
            launch = self._again(launch)
        self.found["orphans"] += len(launch.left())

    def _ranks(self, launch: Launch, step: int) -> list[int]:
        """The ranks' pids when both are at a step; empty when the launcher gave up before."""

        def there() -> list[int] | None:
            if launch.process.poll() is not None:
                return []
            beats = [launch.beat(rank) for rank in (0, 1)]
            return [b.pid for b in beats if b] if all(b and b.step >= step for b in beats) else None

        def known() -> tuple[list[int]] | None:
            pids = there()
            return None if pids is None else (pids,)

        pids: list[int] = wait_for(known, f"step {step}")[0]
        return pids

    def _kill(self, launch: Launch, pids: list[int]) -> None:
        target = self.rng.choices(list(TARGETS), list(TARGETS.values()))[0]
        pid = {"rank 0": pids[0], "rank 1": pids[1], "launcher": launch.process.pid}.get(target)
        try:
            pid = pid or launch.agent(pids[0])
            saving = bool(list((self.folder / "run" / "checkpoints").glob(".*")))
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            return
        self.found["kills"] += 1
        self.found[f"kills of {target}"] += 1
        self.found["kills during a save"] += saving
        if target == "launcher":
            launch.process.wait()
            wait_for(lambda: not launch.left(), "end of the ranks of a killed launcher")

    def _again(self, launch: Launch) -> Launch:
        """Start the run once more, as a person would."""
        launch.wait()
        self.found["orphans"] += len(launch.left())
        self.found["starts by hand"] += 1
        return Launch(self.path)


def losses(folder: Path, backend: str) -> dict[int, float]:
    """Those of the run that is never killed."""
    folder.mkdir()
    launch = Launch(run_file(folder, epochs=EPOCHS, size=SIZE, backend={"name": backend}))
    assert launch.wait() == 0, launch.text()
    return launch.losses()


def main() -> None:
    """Kill, check, write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("configs/results/kills.json"))
    args = parser.parse_args()
    root, total, rows = Path(tempfile.mkdtemp(prefix="kills-")), Counter[str](), dict[str, Any]()
    expected: dict[str, dict[int, float]] = {}
    begin, number = time.monotonic(), 0
    while total["kills"] < args.kills:
        backend = BACKENDS[number % len(BACKENDS)]
        if backend not in expected:
            expected[backend] = losses(root / f"{backend}-whole", backend)
        name = f"{args.seed}-{number}-{backend}"
        soak = Soak(root / name, backend, name, min(KILLS_OF_A_RUN, args.kills - total["kills"]))
        soak.run()
        steps = trained(soak.folder, 2, 1)
        launch_losses = {s["step"]: s["train/loss"] for s in _steps(soak.folder)}
        found = soak.found
        found["bad resumes"] += launch_losses != expected[backend]
        found["samples lost or repeated"] += lost_or_repeated(steps, SIZE, BATCH)
        found["steps missing"] += EPOCHS * SIZE // BATCH - len(steps)
        total += found
        for key in ("bad resumes", "samples lost or repeated", "steps missing", "orphans"):
            total[key] += 0
        rows[name] = dict(found)
        number += 1
        tree = {"seed": args.seed, "seconds": round(time.monotonic() - begin), "total": dict(sorted(total.items())), "runs": rows}
        args.out.write_text(json.dumps(tree, indent=1) + "\n")
        print(name, dict(found), flush=True)
        if not (found["bad resumes"] or found["samples lost or repeated"] or found["steps missing"]):
            shutil.rmtree(soak.folder)


def _steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["event"] == "step"]


if __name__ == "__main__":
    main()
