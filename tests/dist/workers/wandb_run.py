"""Worker of test_wandb: feeds the watcher a run's events, and says how long each call of the training thread took."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from harness.config.loader import decode
from harness.config.schema import WatchConfig
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Ended, Event, Noticed, Started, Windowed
from harness.watch.wandb import WandbWatcher
from tests.dist.workers import patient

POINTS = 200


def main(folder: Path, at_half: str, reason: str) -> None:
    """`at_half`: wait for this file at half time, so that a test can do something to the server. `reason`: how the run ends."""
    config = decode(
        {"recipe": {"samples": 100}, "batch": {"reference": 1, "total": 1}, "optim": {"lr": 1}, "schedule": {"samples": 10}}
    )
    planned = plan(config, World(1))
    watcher = WandbWatcher(WatchConfig(wandb="online"), folder)
    events: list[Event] = [Started(planned, {"precision": "fp32"}, str(folder), 0, 0, 1, "cpu", environment={"python": "3"})]
    events += [Noticed(n, n, code, "said often") for n in range(20) for code in ("resumed", "spike", "dead", "compiled")]
    events += [
        Windowed(n, n, {"progress/samples": float(n), "train/loss": 1 / n, "train/none": None}) for n in range(1, POINTS + 1)
    ]
    spent: list[float] = []
    for number, event in enumerate([*events, Ended(POINTS, POINTS, reason, "as asked", {})]):
        begin = time.perf_counter()
        watcher(event)
        spent.append(time.perf_counter() - begin)
        if number == len(events) - POINTS // 2 and at_half:
            Path(f"{at_half}.reached").touch()
            while not Path(at_half).exists():
                time.sleep(0.01)
    begin = time.perf_counter()
    watcher.close()
    logged = sorted(spent[-POINTS - 1 : -1])
    told: dict[str, Any] = {
        "start_s": spent[0],
        "log_p99_ms": 1e3 * logged[int(0.99 * len(logged))],
        "finish_s": time.perf_counter() - begin,
    }
    print(f"TOLD {json.dumps(told)}", flush=True)


if __name__ == "__main__":
    patient.if_asked()
    main(Path(sys.argv[1]), *[*sys.argv[2:], *("", "complete")[len(sys.argv) - 2 :]])
