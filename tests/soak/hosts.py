"""What happens to a run on two hosts when one is killed, comes back, is asked to leave, or its cable is cut; and after how long.

    python -m tests.soak.hosts [--write] [killed asked_to_leave cut_4_s cut_and_mended]

Real ranks in network namespaces over gloo. Seconds are from the event to the first step after it, imports of torch included.
With --write the record goes to configs/results/hosts.json, after each scene.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts
from tests.cluster.slurm import wait_until
from tests.dist.test_hosts import MEET, Runs
from tests.dist.test_resume import journal, run_file
from tests.support.processes import ROOT

HANG_S = 15
FLAGS = ("--schedule.epochs", "100000", "--checkpoint.every_samples", "2000", "--restart.hang_s", str(HANG_S))
Scene = Callable[[Runs, Hosts, Path], dict[str, Any]]


def seconds_until(what: Callable[[], Any], why: str, limit_s: float = 240) -> float:
    """How long until it is so."""
    began = time.monotonic()
    wait_until(what, why, limit_s)
    return round(time.monotonic() - began, 1)


def steps(folder: Path) -> int:
    """Lines of steps in the journal."""
    return len(journal(folder, "step"))


def resumed(runs: Runs, folder: Path, starts: int) -> Callable[[], bool]:
    """Whether a step was made after the `starts`-th start of the ranks."""

    def done() -> bool:
        whole, _, _ = (folder / "run" / "events.jsonl").read_text().rpartition("\n")
        lines = [json.loads(line)["event"] for line in whole.splitlines()]
        begun = [i for i, event in enumerate(lines) if event == "start"]
        return len(begun) > starts and "step" in lines[begun[starts] :]

    return done


def killed(runs: Runs, hosts: Hosts, folder: Path) -> dict[str, Any]:
    """A host dies, and comes back."""
    starts = len(runs.worlds())
    hosts.kill(2)
    alone = seconds_until(resumed(runs, folder, starts), "the other to go on")
    runs.start(2)
    back = seconds_until(resumed(runs, folder, starts + 1), "both to go on")
    return {"goes_on_alone_s": alone, "goes_on_together_s": back}


def asked_to_leave(runs: Runs, hosts: Hosts, folder: Path) -> dict[str, Any]:
    """A host's launcher is told to stop."""
    starts = len(runs.worlds())
    os.kill(runs.started[1].pid, signal.SIGTERM)
    alone = seconds_until(resumed(runs, folder, starts), "the other to go on")
    repeated = journal(folder, "end")[-1]["samples"] - journal(folder, "start")[-1]["samples"]
    return {"goes_on_alone_s": alone, "samples_repeated": repeated}


def cut_short(runs: Runs, hosts: Hosts, folder: Path) -> dict[str, Any]:
    """A cable is out for 4 seconds."""
    starts = len(runs.worlds())
    hosts.link(2, "down")
    time.sleep(4)
    hosts.link(2, "up")
    seen = steps(folder)
    on = seconds_until(lambda: steps(folder) > seen + 20, "steps to go on")
    return {"goes_on_s": on, "restarts": len(runs.worlds()) - starts}


def cut_long(runs: Runs, hosts: Hosts, folder: Path) -> dict[str, Any]:
    """A cable is out until the other host continues alone, and is repaired then."""
    starts = len(runs.worlds())
    hosts.link(2, "down")
    alone = seconds_until(resumed(runs, folder, starts), "the other to go on")
    hosts.link(2, "up")
    both, second = resumed(runs, folder, starts + 1), runs.started[1]
    back = seconds_until(lambda: both() or second.poll() is not None, "the one that was cut off to come back, or to end", 600)
    if not both():
        runs.start(2)
        back += seconds_until(both, "both to go on")
    return {"goes_on_alone_s": alone, "goes_on_together_s": round(back, 1), "the_other_ended_with": second.poll()}


SCENES: dict[str, Scene] = {"killed": killed, "asked_to_leave": asked_to_leave, "cut_4_s": cut_short, "cut_and_mended": cut_long}


def words(record: dict[str, Any]) -> str:
    """The README's sentence."""
    killed, asked, short, cut = (record["scenes"][name] for name in SCENES)
    return (
        f"a host that is killed costs the others {killed['goes_on_alone_s']:.0f} s, and its return costs"
        f" {killed['goes_on_together_s']:.0f} s; one that is asked to leave, {asked['goes_on_alone_s']:.0f} s and"
        f" {asked['samples_repeated']} samples. A cable that is out for 4 s costs {short['restarts']} restarts; one that"
        f" stays out costs the others {cut['goes_on_alone_s']:.0f} s at `restart.hang_s: {record['hang_s']}`, and its"
        f" repair costs {cut['goes_on_together_s']:.0f} s"
    )


def main() -> None:
    """Play every scene once, or those that are named."""
    out, wanted = ROOT / "configs" / "results" / "hosts.json", [name for name in sys.argv[1:] if name != "--write"]
    told: dict[str, Any] = json.loads(out.read_text())["scenes"] if wanted and out.exists() else {}
    for name in wanted or SCENES:
        scene = SCENES[name]
        with tempfile.TemporaryDirectory() as where, Hosts(Path(where), 2) as hosts:
            folder = Path(where)
            run_file(folder, "total: 8")
            with Runs(hosts, folder, "--procs", "2", "--nodes", "1:2", *FLAGS, *MEET) as runs:
                runs.start(1)
                runs.start(2)
                wait_until(lambda: 2 in runs.worlds() and journal(folder, "checkpoint"), "two hosts", 240)  # noqa: B023
                told[name] = {"what": (scene.__doc__ or "").strip()} | scene(runs, hosts, folder)
                told[name]["worlds"] = runs.worlds()
        print(name, json.dumps(told[name]), flush=True)
        record = {
            "command": "python -m tests.soak.hosts --write",
            "machine": f"{os.cpu_count()} cores, two network namespaces, a rank in each, gloo",
            "load": round(os.getloadavg()[1], 1),
            "hang_s": HANG_S,
            "scenes": {known: told[known] for known in SCENES if known in told},
        }
        if "--write" in sys.argv:
            out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
