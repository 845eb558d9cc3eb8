"""Kills at random moments, of ranks, launching processes and launchers: python -m tests.soak.kills [--kills 200] [--seed 0].

Each run takes a number of kills and must end with the losses of a run that took none, bit for bit, and with every sample trained on
once an epoch. A run that does not come to its end is told in the record, and its kills do not count. The record,
configs/results/kills.json, is written after each run, with the seconds from each kill to the end of the first step after it. One
that is there is gone on with: the kills may be made in several sittings.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from harness.supervision.heartbeat import Beat
from harness.watch.git_info import commit
from tests.support.faults.launching import Launch, run_file, wait_for
from tests.support.faults.ledger import lost_or_repeated, trained
from tests.support.processes import LIMIT_S, ROOT

BACKENDS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
KILLS_OF_A_RUN = 8
EPOCHS, SIZE, BATCH = 12, 64, 8
TARGETS = {"rank 0": 4, "rank 1": 4, "launching process": 1, "launcher": 1}
BEFORE_FIRST_STEP = 0.1
"""Share of kills that fall before the first step, where the launcher gives up and a person starts the run again."""
GIVE_UP = 8
"""Runs that may fail in one sitting."""
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
        self.restarts: list[dict[str, float]] = []
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
            self.restarts.append(self._shares(at_s, time.monotonic()))

    def _stepped(self) -> bool:
        """Wait until the ranks have done a step again; False where the launcher gave up."""

        def known() -> tuple[bool] | None:
            if self._launch.process.poll() is not None:
                return (False,)
            beats = self._beats()
            return (True,) if beats and all(b.ticks > 1 for b in beats) else None

        return bool(wait_for(known, "step after a kill", LIMIT_S, 0.05)[0])

    def _shares(self, killed_s: float, stepped_s: float) -> dict[str, float]:
        """Seconds of a restart: all, and those in which launching process and rank 0 did nothing but import."""
        newest = max(self.folder.glob("*.start")).read_text().split()
        agent_s, rank_s, imported_s = map(float, newest[1:])
        shares = {"all_s": stepped_s - killed_s, "launcher_s": agent_s - killed_s, "imports_s": imported_s - agent_s}
        return {name: round(seconds, 2) for name, seconds in shares.items()} | {"rank_s": round(imported_s - rank_s, 2)}

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
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    tree: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if tree.get("seed") != args.seed:
        tree = {"seed": args.seed, "seconds": 0, "total": {}, "restart": {}, "failed": {}, "runs": {}}
    expected: dict[str, dict[int, float]] = {}
    begin, before_s, failures = time.monotonic(), tree["seconds"], len(tree["failed"])
    while (had := tree["total"].get("kills", 0)) < args.kills and len(tree["failed"]) < failures + GIVE_UP:
        number = len(tree["runs"]) + len(tree["failed"])
        backend = BACKENDS[number % len(BACKENDS)]
        name, soak = f"{args.seed}-{number}-{backend}", None
        try:
            if backend not in expected:
                expected[backend] = losses(root / f"{backend}-whole", backend)
            soak = Soak(root / name, backend, name, min(KILLS_OF_A_RUN, args.kills - had))
            soak.run()
        except (AssertionError, subprocess.SubprocessError) as e:
            tree["failed"][name] = {"why": str(e)[-2000:], "kills": soak.found["kills"] if soak else 0}
        else:
            soak.check(expected[backend])
            tree["runs"][name] = dict(soak.found) | {"commit": str(commit(ROOT))[:12], "restarts": soak.restarts}
        tree |= {"seconds": before_s + round(time.monotonic() - begin), "total": totals(tree["runs"])}
        tree["restart"] = restart([shares for run in tree["runs"].values() for shares in run.get("restarts", [])])
        args.out.write_text(json.dumps(tree, indent=1) + "\n")
        print(name, tree["runs"].get(name) or tree["failed"][name], flush=True)
        if name in tree["runs"] and not any(tree["runs"][name].get(key, 0) for key in BAD):
            shutil.rmtree(root / name)


def totals(runs: dict[str, dict[str, Any]]) -> dict[str, int]:
    """The counts of all runs."""
    total = Counter[str](dict.fromkeys(("kills", *BAD), 0))
    for run in runs.values():
        total.update({key: value for key, value in run.items() if isinstance(value, int)})
    return dict(sorted(total.items()))


def restart(restarts: list[dict[str, float]]) -> dict[str, Any]:
    """Seconds from a kill to the end of the first step after it, where the launcher started again by itself."""
    if not restarts:
        return {}
    found = {"all": [r["all_s"] for r in restarts], "imports": [r["imports_s"] for r in restarts]}
    found["beyond_imports"] = [r["all_s"] - r["imports_s"] for r in restarts]
    spread = {f"{name}_{how}_s": round(f(s), 2) for name, s in found.items() for how, f in (("median", median), ("max", max))}
    return {"count": len(restarts)} | spread


def _steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["event"] == "step"]


if __name__ == "__main__":
    main()
