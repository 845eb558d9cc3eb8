"""`make bench`: us and other harnesses against the loop that one writes by hand, in one run; configs/results/bench_peers.json.

Five rounds of processes, each harness once a round, so that nobody has the machine's good minute to himself. A row is the median of
the rounds' medians, with the lowest and the highest round. Hand against hand must come out within 2 %, or that work is void.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.bench.peers.table import label, write_readme

ROOT = Path(__file__).parents[3]
OUT = ROOT / "configs" / "results" / "bench_peers.json"
ROUNDS, PAIRS, VOID = 5, 35, 0.02
NO_NOISE, LONG = "widebatch, noise scale off", "widebatch, windows of 50 steps"
PEERS = ("hand", "widebatch", LONG, NO_NOISE, "accelerate", "transformers", "fabric", "lightning", "deepspeed", "widebatch zero0")
REAL = ("hand", "widebatch", NO_NOISE, "accelerate", "transformers")
PACKAGES = ("torch", "accelerate", "transformers", "lightning", "deepspeed")
LIMIT_S = 300
PLAIN = {"count": ("calls", "operations", "syncs"), "memory": ("peak_mib",), "watch": ("journal", "terminal", "W&B")}
"""What is a number and no ratio."""


def tasks(number: int) -> list[tuple[str, str, str, int, int, int]]:
    """(work, peer, modes, pairs, steps of a block, processes) of a round."""
    modes = "count,plain,log" if number == 0 else "plain,log"
    out = [("tiny", peer, modes, PAIRS, 50 if peer == LONG else 20, 1) for peer in PEERS]  # whole windows in each block
    if number < 3:
        out += [("real", peer, "log", PAIRS, 1, 1) for peer in REAL]
        out += [("tiny", peer, "log", PAIRS, 10, 2) for peer in ("hand", "widebatch")]
        out += [("real", peer, "log", PAIRS, 1, 2) for peer in ("hand", "widebatch")]
        out += [("real", peer, "memory", PAIRS, 1, 1) for peer in ("hand", "widebatch")]
        out += [("tiny", "widebatch", "watch", PAIRS, 1, 1)]
    return out


def measured(task: tuple[str, str, str, int, int, int]) -> list[dict[str, Any]]:
    """What the processes of a task print; nothing, and a word, where they fail."""
    work, peer, modes, pairs, block, processes = task
    start = [sys.executable, "-W", "ignore"]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    argv = [*start, "-m", "tests.bench.peers.pairs", work, peer, modes, str(pairs), str(block)]
    try:
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"{peer} on {work}: more than {LIMIT_S} s", flush=True)
        return []
    if done.returncode:
        print(f"{peer} on {work}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"work"')]


def summed_up(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds of each (work, processes, peer, mode) as one row."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["work"], one["processes"], one["peer"], one["mode"]), []).append(one)
    rows = []
    for (work, processes, peer, mode), rounds in groups.items():
        row: dict[str, Any] = {"work": work, "processes": processes, "peer": peer, "mode": mode}
        if mode in PLAIN:
            row |= {name: round(statistics.median(one[name] for one in rounds), 1) for name in PLAIN[mode]}
        else:
            ratios = [statistics.median(a / b for a, b in one["pairs"]) for one in rounds]
            extra = [statistics.median((a - b) / one["block"] for a, b in one["pairs"]) * 1e6 for one in rounds]
            hand = [statistics.median(b / one["block"] for _, b in one["pairs"]) * 1e6 for one in rounds]
            row |= {
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "extra_us": round(statistics.median(extra)),
                "hand_us": round(statistics.median(hand)),
                "rounds": len(rounds),
            }
        rows.append(row)
    return rows


def void(rows: list[dict[str, Any]]) -> list[str]:
    """The works that say nothing, as even hand against hand came out unequal: "WORK PROCESSES MODE"."""
    hand = [row for row in rows if row["peer"] == "hand" and "ratio" in row]
    return [label(row) for row in hand if abs(row["ratio"] - 1) > VOID]


def machine() -> dict[str, Any]:
    """What this was measured on, and how busy it was."""
    cpus = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = {line.partition(":")[2].strip() for line in cpus.splitlines() if line.startswith("model name")}
    found: dict[str, Any] = {"cpu": ", ".join(sorted(names)) or platform.processor(), "cores": os.cpu_count()}
    return found | {"python": platform.python_version(), "threads": 1, "load_1m": round(os.getloadavg()[0], 1)}


def versions() -> dict[str, str]:
    """Of what was compared."""
    out = {}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


def main(rounds: int = ROUNDS) -> int:
    """Measure, print and write; status 1 where the run is void."""
    begin, found = time.monotonic(), []
    about = {"when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "machine": machine(), "versions": versions()}
    for number in range(rounds):
        for task in tasks(number):
            found += measured(task)
            print(f"round {number + 1} of {rounds}  {task[0]:<5} {task[1]:<16} {time.monotonic() - begin:5.0f} s", flush=True)
    rows = summed_up(found)
    record: dict[str, Any] = {"command": "make bench", "void": void(rows), "load_1m_after": machine()["load_1m"]}
    record |= about | {"seconds": round(time.monotonic() - begin), "pairs": PAIRS, "rows": rows}
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    write_readme(record)
    for what in record["void"]:
        print(f"void: {what}: hand against hand is off by more than {VOID:.0%}: the machine is too busy")
    return int(bool(record["void"]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
