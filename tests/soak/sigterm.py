"""SIGTERM at random moments, to whichever process: python -m tests.soak.sigterm [--count 100] [--seed 0].

Each time there must be a checkpoint of the step at which the run ended, exit status 75, and no process left. What was not so is
told in the record, and the next one begun. The record, configs/results/sigterm.json, is written after each; one that is there is
gone on with.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness.supervision.exit_codes import STOPPED
from tests.support.faults.launching import Launch, run_file

TARGETS = ("launcher", "launching process", "rank 0", "rank 1", "all")


def stop(launch: Launch, target: str, after_s: float) -> None:
    """Send SIGTERM, so long after the first step."""
    pids = launch.at_step(1)
    time.sleep(after_s)
    agent = launch.agent(pids[0])
    whom = {"launcher": [launch.process.pid], "launching process": [agent], "rank 0": pids[:1], "rank 1": pids[1:]}
    for pid in whom.get(target, [launch.process.pid, agent, *pids]):
        os.kill(pid, signal.SIGTERM)


def right(launch: Launch) -> list[str]:
    """What is wrong with how a run ended; nothing, if all is right."""
    status, wrong = launch.wait(), []
    if status != STOPPED:
        wrong.append(f"status {status}")
    if left := launch.left():
        wrong.append(f"{len(left)} processes are left")
    end = launch.journal("end")[-1]
    newest = max(p.name for p in (launch.folder / "run" / "checkpoints").glob("samples-*"))
    if end["reason"] != "stop_requested":
        wrong.append(f"ended with {end['reason']}")
    if newest != f"samples-{end['samples']:012d}":
        wrong.append(f"ended at {end['samples']}, newest is {newest}")
    return wrong


def main() -> None:
    """Stop, check, write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("configs/results/sigterm.json"))
    args = parser.parse_args()
    folder, begin = Path(tempfile.mkdtemp(prefix="sigterm-")), time.monotonic()
    tree = json.loads(args.out.read_text()) if args.out.exists() else {}
    if tree.get("seed") != args.seed:
        tree = {"seed": args.seed, "count": 0, "right": 0, "sent to": {}, "wrong": [], "seconds": 0}
    total, wrong, before_s = Counter[str](tree["sent to"]), list(tree["wrong"]), tree["seconds"]
    path = run_file(folder, epochs=1_000_000, pace_ms=20)
    for number in range(tree["count"], args.count):
        target, rng = TARGETS[number % len(TARGETS)], random.Random(f"{args.seed}-{number}")  # noqa: S311
        launch = Launch(path)
        try:
            stop(launch, target, rng.random() * 3)
            bad = right(launch)
        except (AssertionError, subprocess.SubprocessError, OSError) as e:
            bad = [str(e)[-2000:]]
        finally:
            launch.end()
        total[target] += 1
        wrong += [f"{number} {target}: {', '.join(bad)}"] if bad else []
        tree |= {"count": number + 1, "right": number + 1 - len(wrong), "sent to": dict(total), "wrong": wrong}
        tree["seconds"] = before_s + round(time.monotonic() - begin)
        args.out.write_text(json.dumps(tree, indent=1) + "\n")
        print(number, target, bad or "right", flush=True)


if __name__ == "__main__":
    main()
