"""Ranks killed at random moments under restart.in_place: python -m tests.soak.survivors [--kills 50] [--seed 0].

Each run has four ranks on ddp, of which up to three, one after another, are killed with SIGKILL (not rank 0: without it all ranks
start again, which tests.soak.kills measures). It must end with the losses of a run that no kill met, to 1e-6 in fp32, and with each
step and sample once in its journal. Seconds count from the kill until all that are left have begun the step after the next: by then
the next has ended. `restarts` are kills that took the other path. The record, configs/results/survivors.json, is written after each
run; one that is there is gone on with.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness.config.loader import load
from harness.plan.plan import plan
from harness.plan.world import World
from harness.supervision.heartbeat import Beat, read
from harness.telemetry.events import Stepped
from harness.training.loop import train
from harness.watch.git_info import commit
from tests.support.faults.launching import Launch, run_file, told, wait_for
from tests.support.processes import LIMIT_S, ROOT

RANKS, KILLS_OF_A_RUN, EPOCHS, SIZE, BATCH = 4, 3, 24, 64, 16
SECTIONS: dict[str, Any] = {
    "epochs": EPOCHS,
    "size": SIZE,
    "batch": {"total": BATCH},
    "eval": {"every_epochs": 2},
    "watch": {"every_steps": 5},
    "checkpoint": {"every_samples": 128},
}
PACE_MS = 100


def undisturbed(folder: Path) -> dict[int, float]:
    """The losses of four ranks that no kill meets, in this process."""
    folder.mkdir()
    config = load(run_file(folder, **SECTIONS), {})
    planned = plan(config, World(RANKS, device="cpu", processes=1), SIZE)
    return {e.step: e.metrics["train/loss"] for e in train(config, planned, cpu=True) if isinstance(e, Stepped)}


class Soak:
    """One run."""

    def __init__(self, folder: Path, seed: str) -> None:
        folder.mkdir()
        self.folder, self.rng = folder, random.Random(seed)  # noqa: S311
        self.launch = Launch(run_file(folder, **SECTIONS, pace_ms=PACE_MS, restart={"in_place": True, "budget": 100}), RANKS)
        self.kills: list[dict[str, Any]] = []
        self._pulses: list[Path] = []

    def run(self, kills: int) -> None:
        """To its end. Raises AssertionError or TimeoutExpired where that does not come."""
        try:
            pids = self.launch.at_step(2)
            left = list(range(RANKS))
            for _ in range(min(kills, KILLS_OF_A_RUN)):
                time.sleep(self.rng.random() * 1.5)
                victim = self.rng.choice(left[1:])
                left.remove(victim)
                if not self._kill(pids[victim], left):
                    break
            (self.folder / "fast").touch()
            status = self.launch.wait(LIMIT_S)
            assert status == 0, self.launch.text()[-4000:]
            assert self.launch.left() == []
        finally:
            self.launch.end()

    def _kill(self, pid: int, left: list[int]) -> bool:
        """Kill a rank, and wait for the end of the next step; False where all ranks were started again."""
        by = told(pid)
        assert by is not None, "it is one of the launch"
        self._pulses = [by.heartbeat(rank) for rank in left]
        before = self._beats()
        group, phase = max(b.group for b in before), before[0].phase
        os.kill(pid, signal.SIGKILL)
        began_s = time.monotonic()

        def again() -> list[Beat]:
            assert self.launch.process.poll() is None, self.launch.text()[-4000:]
            beats = self._beats()
            return beats if beats and all(b.group > group or b.pid != was.pid for b, was in zip(beats, before, strict=True)) else []

        first = wait_for(again, "a new group", LIMIT_S)
        in_place = all(b.pid == was.pid for b, was in zip(first, before, strict=True))
        ticks = [b.ticks for b in first]
        wait_for(
            lambda: [b.ticks > t + 1 for b, t in zip(self._beats(), ticks, strict=True)] == [True] * len(left), "a step", LIMIT_S
        )
        self.kills.append({"s": round(time.monotonic() - began_s, 2), "in_place": in_place, "during": phase, "left": len(left)})
        return in_place

    def _beats(self) -> list[Beat]:
        """Those of the ranks that are left; none where all are started again, and one has none yet."""
        beats = [read(path) for path in self._pulses]
        return [beat for beat in beats if beat] if all(beats) else []

    def check(self, expected: dict[int, float]) -> dict[str, Any]:
        """What its journal says."""
        steps = {s["step"]: s for s in self.launch.journal("step")}
        numbers = [s["step"] for s in self.launch.journal("step")]
        wrong = sum(abs(numbers.count(step) - 1) for step in expected) + sum(s["samples"] != BATCH * n for n, s in steps.items())
        apart = max(abs(steps[n]["train/loss"] - loss) / loss for n, loss in expected.items() if n in steps)
        lost = [n for n in self.launch.journal("notice") if n["code"] == "rank_lost"]
        return {
            "kills": self.kills,
            "told": [round(n["seconds"], 3) for n in lost],
            "samples_lost_or_repeated": wrong * BATCH if all(k["in_place"] for k in self.kills) else 0,
            "loss_difference": apart if math.isfinite(apart) else str(apart),
            "commit": str(commit(ROOT))[:12],
        }


def summary(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All runs together."""
    recovered = [s for run in runs.values() for s in run["told"]]
    kills = [kill for run in runs.values() for kill in run["kills"]]
    seconds = [kill["s"] for kill in kills if kill["in_place"]]
    return {
        "kills": len(kills),
        "in_place": len(seconds),
        "restarts": len(kills) - len(seconds),
        "to_the_end_of_the_next_step_s": {"median": median(seconds), "max": max(seconds)} if seconds else {},
        "recovery_s": {"median": median(recovered), "max": max(recovered)} if recovered else {},
        "samples_lost_or_repeated": sum(run["samples_lost_or_repeated"] for run in runs.values()),
        "largest_loss_difference": max(run["loss_difference"] for run in runs.values()),
    }


def main() -> None:
    """Kill, check, write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("configs/results/survivors.json"))
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="survivors-"))
    tree: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if tree.get("seed") != args.seed:
        tree = {"seed": args.seed, "seconds": 0, "total": {}, "runs": {}}
    expected, begin, before_s = undisturbed(root / "whole"), time.monotonic(), tree["seconds"]
    while (had := tree["total"].get("kills", 0)) < args.kills:
        name = f"{args.seed}-{len(tree['runs'])}"
        soak = Soak(root / name, name)
        soak.run(args.kills - had)
        tree["runs"][name] = soak.check(expected)
        tree |= {"seconds": before_s + round(time.monotonic() - begin), "total": summary(tree["runs"])}
        args.out.write_text(json.dumps(tree, indent=1) + "\n")
        print(name, tree["runs"][name], tree["total"], flush=True)
        shutil.rmtree(root / name)


if __name__ == "__main__":
    main()
