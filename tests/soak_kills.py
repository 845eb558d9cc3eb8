"""Kills at random moments, of ranks, launching processes and launchers: python -m tests.soak_kills [--kills 200] [--seed 0].

Each run takes a number of kills and must end with the losses of a run that took none, bit for bit, and with every sample trained on
once an epoch. A run that does not come to its end is told in the record, and its kills do not count. The result is written after
each run, to configs/results/kills.json, with the seconds from each kill to the end of the first step after it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.survive.pulse import Beat
from tests.dist.processes import environ
from tests.faults.launching import Launch, run_file, wait_for
from tests.faults.ledger import lost_or_repeated, trained

BACKENDS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
IMPORTS = {"ddp": "torch", "fsdp": "torch", "zero1": "deepspeed", "zero2": "deepspeed", "zero3": "deepspeed"}
KILLS_OF_A_RUN = 8
EPOCHS, SIZE, BATCH = 12, 64, 8
TARGETS = {"rank 0": 4, "rank 1": 4, "launching process": 1, "launcher": 1}
BEFORE_FIRST_STEP = 0.1
"""Share of kills that fall before the first step, where the launcher gives up and a person starts the run again."""
LIMIT_S = 600.0
"""What no wait here may take, on however busy a machine; nothing is measured by it."""
BAD = ("bad resumes", "samples lost or repeated", "steps missing", "orphans")


class Soak:
    """One run that is killed again and again."""

    def __init__(self, folder: Path, backend: str, seed: str, kills: int) -> None:
        folder.mkdir()
        self.rng, self.kills, self.folder = random.Random(seed), kills, folder  # noqa: S311
        self.path = run_file(
            folder, epochs=EPOCHS, size=SIZE, pace_ms=150, backend={"name": backend}, restart={"budget": 1000}, eval={}
        )
        self.found: Counter[str] = Counter()
        self.restart_s: list[float] = []
        self._launch = Launch(self.path)
        self._killed: set[int] = set()
        """Ranks of before the last kill."""

    def run(self) -> None:
        """To the end of the run. Raises AssertionError or TimeoutExpired where it does not come."""
        try:
            furthest = 0
            for _ in range(self.kills):
                early = self.rng.random() < BEFORE_FIRST_STEP
                pids = self._ranks(0 if early else furthest + 1)
                while not pids:
                    if self._launch.wait(LIMIT_S) == 0:
                        return  # sooner than its kills: they are made up for by other runs
                    self._again()
                    pids = self._ranks(furthest + 1)
                time.sleep(self.rng.random() * (3.0 if early else 1.2))
                beats = [b for b in map(self._launch.beat, (0, 1)) if b]
                furthest = max(furthest, *(b.step for b in beats), 0)
                self._kill(pids, trains=len(beats) == 2 and all(b.ticks for b in beats))
            (self.folder / "fast").touch()
            while (status := self._launch.wait(LIMIT_S)) != 0:
                self.found[f"ended with {status}"] += 1
                self._again()
            self.found["orphans"] += len(self._launch.left())
        finally:
            self._launch.end()

    def _beats(self) -> list[Beat]:
        """The pulses of the ranks that no kill has met yet, once both are there."""
        beats = [b for b in map(self._launch.beat, (0, 1)) if b and b.pid not in self._killed]
        return beats if len(beats) == 2 else []

    def _ranks(self, step: int) -> list[int]:
        """The ranks' pids when both are at a step; empty when the launcher gave up before."""

        def known() -> tuple[list[int]] | None:
            if self._launch.process.poll() is not None:
                return ([],)
            beats = self._beats()
            return ([b.pid for b in beats],) if beats and all(b.step >= step for b in beats) else None

        pids: list[int] = wait_for(known, f"step {step}", LIMIT_S, 0.05)[0]
        return pids

    def _kill(self, pids: list[int], *, trains: bool) -> None:
        """Kill one process, and wait for what comes of it. `trains`: there is progress, so that the launcher starts again."""
        target = self.rng.choices(list(TARGETS), list(TARGETS.values()))[0]
        launch = self._launch
        pid = {"rank 0": pids[0], "rank 1": pids[1], "launcher": launch.process.pid}.get(target)
        try:
            pid = pid or launch.agent(pids[0])
            saving = bool(list((self.folder / "run" / "checkpoints").glob(".*")))
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            return
        at_s = time.monotonic()
        self._killed = set(pids)
        self.found["kills"] += 1
        self.found[f"kills of {target}"] += 1
        self.found["kills during a save"] += saving
        if target == "launcher":
            launch.process.wait()
            wait_for(lambda: not launch.left(), "end of the ranks of a killed launcher", LIMIT_S, 0.05)
            self._again()
        elif trains and self._stepped():
            self.restart_s.append(round(time.monotonic() - at_s, 2))

    def _stepped(self) -> bool:
        """Wait until the ranks have done a step again; False where the launcher gave up."""

        def known() -> tuple[bool] | None:
            if self._launch.process.poll() is not None:
                return (False,)
            beats = self._beats()
            return (True,) if beats and all(b.ticks > 1 for b in beats) else None

        return bool(wait_for(known, "step after a kill", LIMIT_S, 0.05)[0])

    def _again(self) -> None:
        """Start the run once more, as a person would."""
        self._launch.wait(LIMIT_S)
        self.found["orphans"] += len(self._launch.left())
        self.found["starts by hand"] += 1
        self._launch = Launch(self.path)

    def check(self, expected: dict[int, float]) -> None:
        """Compare with the run that was never killed, and count the samples."""
        found = self.found
        found["bad resumes"] += {s["step"]: s["train/loss"] for s in _steps(self.folder)} != expected
        try:
            steps = trained(self.folder, 2, 1)
        except AssertionError:  # a start began at a step that none before it had reached
            found["bad resumes"], steps = 1, []
        found["samples lost or repeated"] += lost_or_repeated(steps, SIZE, BATCH)
        found["steps missing"] += EPOCHS * SIZE // BATCH - len(steps)


def import_s(module: str) -> float:
    """Seconds in which a new process imports a module."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {module}"], env=environ(), check=True, capture_output=True)
    return round(time.monotonic() - began_s, 2)


def losses(folder: Path, backend: str) -> dict[int, float]:
    """Those of the run that is never killed."""
    folder.mkdir()
    launch = Launch(run_file(folder, epochs=EPOCHS, size=SIZE, backend={"name": backend}))
    try:
        assert launch.wait(LIMIT_S) == 0, launch.text()
    finally:
        launch.end()
    return launch.losses()


def main() -> None:
    """Kill, check, write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("configs/results/kills.json"))
    args = parser.parse_args()
    root, total = Path(tempfile.mkdtemp(prefix="kills-")), Counter[str]()
    tree: dict[str, Any] = {"seed": args.seed, "seconds": 0, "total": {}, "restart": {}, "failed": {}, "runs": {}}
    expected: dict[str, dict[int, float]] = {}
    begin, number = time.monotonic(), 0
    while total["kills"] < args.kills and len(tree["failed"]) < KILLS_OF_A_RUN:
        backend = BACKENDS[number % len(BACKENDS)]
        name, number = f"{args.seed}-{number}-{backend}", number + 1
        soak = None
        try:
            if backend not in expected:
                expected[backend] = losses(root / f"{backend}-whole", backend)
            import_time_s = import_s(IMPORTS[backend])
            soak = Soak(root / name, backend, name, min(KILLS_OF_A_RUN, args.kills - total["kills"]))
            soak.run()
        except (AssertionError, subprocess.SubprocessError) as e:
            tree["failed"][name] = {"why": str(e)[-2000:], "kills": soak.found["kills"] if soak else 0}
        else:
            soak.check(expected[backend])
            total += soak.found
            tree["runs"][name] = dict(soak.found) | {"restart_s": soak.restart_s, f"import {IMPORTS[backend]} s": import_time_s}
        for key in ("kills", *BAD):
            total[key] += 0
        tree |= {
            "seconds": round(time.monotonic() - begin),
            "total": dict(sorted(total.items())),
            "restart": restarts(tree["runs"]),
        }
        args.out.write_text(json.dumps(tree, indent=1) + "\n")
        print(name, tree["runs"].get(name) or tree["failed"][name], flush=True)
        if soak and not any(soak.found[key] for key in BAD) and name not in tree["failed"]:
            shutil.rmtree(soak.folder)


def restarts(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds from a kill to the end of the first step after it, where the launcher started again by itself, by import."""
    found = {}
    for module in sorted(set(IMPORTS.values())):
        mine = [run for run in runs.values() if f"import {module} s" in run]
        seconds = [s for run in mine for s in run["restart_s"]]
        if seconds:
            imports = [run[f"import {module} s"] for run in mine]
            spread = {"count": len(seconds), "median_s": round(statistics.median(seconds), 2), "max_s": max(seconds)}
            found[module] = spread | {"import_median_s": round(statistics.median(imports), 2), "import_max_s": max(imports)}
    return found


def _steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["event"] == "step"]


if __name__ == "__main__":
    main()
