"""One command each, for real: ranks of one machine, of several hosts, of a Slurm job, in a container; beside one process.

    python -m tests.bench.launch [local hosts slurm container "container in slurm" preempted]

Writes configs/results/launch.json: the worst relative difference of a step's loss from that of one process, and seconds from the
command to its end. `markdown` is the README's table. Needs root, Slurm, and the image of `make test-container`.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Cluster, wait_until
from tests.dist.test_hosts import MEET, Runs
from tests.dist.test_resume import SIZE, journal, run_file, trained_ids
from tests.dist.test_slurm import check_whole, submit
from tests.support import container
from tests.support.processes import LIMIT_S, ROOT, environ, run_command

OUT = ROOT / "configs" / "results" / "launch.json"
STEPS = 20
WISHES = ("--batch.total", "32", "--run.stop_after_steps", str(STEPS), "--watch.wandb", "off", "--recipe.samples", "1437")
MANY = 100
"""Epochs of the run that is preempted."""
DIGITS = ROOT / "configs" / "digits.yaml"


def losses(run: Path) -> list[float]:
    """The loss of each step of a run."""
    return [step["train/loss"] for step in journal(run.parent, "step")]


def launching(*flags: str) -> list[str]:
    """`widebatch launch` on CPU ranks."""
    return [sys.executable, "-m", "launch", "launch", str(DIGITS), "--gpus", "0", *WISHES, *flags]


def local(folder: Path, run: Path) -> None:
    """`widebatch launch --procs 2`"""
    run_command(launching("--procs", "2", "--run.dir", str(run)), folder)


def hosts(folder: Path, run: Path) -> None:
    """`widebatch launch --nodes 2 --rendezvous` on each of two hosts"""
    (folder / "run.yaml").write_text(DIGITS.read_text())
    flags = ("--procs", "2", "--nodes", "2", *MEET, *WISHES[:-2], "--run.dir", str(run))
    with Hosts(folder, 2) as up, Runs(up, folder, *flags, samples=1437) as runs:
        assert [p.wait(timeout=LIMIT_S) for p in (runs.start(1), runs.start(2))] == [0, 0], runs.log()


def slurm(folder: Path, run: Path) -> None:
    """`widebatch launch --submit --nodes 4`"""
    with Hosts(folder, 4) as up, Cluster(folder, up) as cluster:
        argv = launching("--submit", "--nodes", "4", "--procs", "8", "--run.dir", str(run))
        job = cluster.ask(*argv, cwd=folder).split()[-1]
        cluster.wait_for(job, "COMPLETED", 600)


def inside(folder: Path, run: Path) -> None:
    """`podman run IMAGE launch --procs 2`"""
    run.mkdir()
    run.chmod(0o777)
    two = ("launch", "configs/digits.yaml", "--gpus", "0", "--procs", "2", *WISHES, "--run.dir", "/work/run")
    container.call(container.podman(*two, before=["--rm", "--env", "OMP_NUM_THREADS=1", "--volume", f"{run}:/work/run"]))


def inside_slurm(folder: Path, run: Path) -> None:
    """`srun podman run IMAGE python -m harness` on two nodes"""
    run.mkdir()
    run.chmod(0o777)
    mine = ["--rm", "--env", "OMP_NUM_THREADS=1", "--env", "ACCELERATE_USE_CPU=true", "--env", "SLURM_*"]
    hosts = ["--volume", f"{folder}/hosts:/etc/hosts:ro", "--volume", f"{run}:/work/run"]
    worker = ("python", "-m", "harness", "configs/digits.yaml", *WISHES, "--run.dir", "/work/run")
    with Hosts(folder, 2) as up, Cluster(folder, up) as cluster:
        cluster.environ["CONTAINERS_CONF"] = os.environ["CONTAINERS_CONF"]
        cluster.ask("srun", "--nodes=2", "--ntasks=2", *container.podman(*worker, before=[*mine, *hosts]))


KINDS: dict[str, tuple[Callable[[Path, Path], None], int]] = {
    "local": (local, 2),
    "hosts": (hosts, 2),
    "slurm": (slurm, 8),
    "container": (inside, 2),
    "container in slurm": (inside_slurm, 2),
}


def compare(kind: str, one: list[float]) -> dict[str, Any]:
    """Launch the run that way, and hold it against the losses of one process."""
    way, ranks = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="widebatch-launch-") as text:
        folder = Path(text)
        folder.chmod(0o755)
        begin = time.monotonic()
        way(folder, folder / "run")
        seconds = round(time.monotonic() - begin, 1)
        found, plan = losses(folder / "run"), journal(folder, "start")[0]["plan"]
    assert (plan["world_size"], len(found)) == (ranks, STEPS)
    worst = max(abs(a / b - 1) for a, b in zip(found, one, strict=True))
    return {"what": way.__doc__, "ranks": ranks, "nodes": plan["nodes"], "steps": STEPS, "worst": worst, "seconds": seconds}


def preempted() -> dict[str, Any]:
    """A job on four nodes that a more urgent one displaces: what is lost of it, and how long it takes."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="widebatch-launch-")))
        cluster = stack.enter_context(Cluster(folder, stack.enter_context(Hosts(folder, 4))))
        run_file(folder, "total: 8")
        flags = ("--nodes", "4", "--procs", "4", "--schedule.epochs", str(MANY), "--watch.wandb", "offline")
        job = submit(cluster, folder, *flags)
        wait_until((folder / "run" / "events.jsonl").exists, "the run")
        wait_until(lambda: journal(folder, "window"), "the first steps")
        begin = time.monotonic()
        cluster.urgent(folder)
        wait_until(lambda: journal(folder, "end"), "the stop")
        stopped = time.monotonic() - begin
        cluster.wait_for(job, "COMPLETED", 600)
        check_whole(folder, MANY)
        end, again = journal(folder, "end")[0], journal(folder, "start")[1]
        expected = Counter(dict.fromkeys(range(SIZE), MANY))
        return {
            "what": "a Slurm job of 4 nodes, displaced by a more urgent one, queued again",
            "stopped": end["reason"],
            "stopped_after_s": round(stopped, 1),
            "samples": sum(expected.values()),
            "samples_lost_or_repeated": sum(abs(n) for n in (trained_ids(folder) - expected).values())
            + sum(abs(n) for n in (expected - trained_ids(folder)).values()),
            "samples_at_stop_and_restart": [end["samples"], again["samples"]],
            "restarts_by_slurm": int(cluster.job(job)["Restarts"]),
            "wandb_runs": len({d.name.rpartition("-")[2] for d in (folder / "run" / "wandb").glob("offline-run-*")}),
        }


def markdown(record: dict[str, Any]) -> str:
    """The README's table."""
    lines = ["| command | ranks | nodes | worst difference to one process |", "|---|---|---|---|"]
    lines += [f"| {r['what']} | {r['ranks']} | {r['nodes']} | {r['worst']:.1e} |" for r in record["rows"].values()]
    return "\n".join(lines)


def main() -> None:
    """Run all, or those that are named, and write the record."""
    record = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    wanted = sys.argv[1:] or [*KINDS, "preempted"]
    with tempfile.TemporaryDirectory(prefix="widebatch-launch-") as text:
        folder = Path(text)
        (folder / "containers.conf").write_text(container.LIMITS)
        os.environ |= {"CONTAINERS_CONF": str(folder / "containers.conf")} | environ()
        os.chdir(ROOT)
        train = [sys.executable, "-m", "launch", "train", str(DIGITS), *WISHES, "--run.dir", str(folder / "one" / "run")]
        run_command(train, folder)
        one = losses(folder / "one" / "run")
        for kind in wanted:
            if kind == "preempted":
                record["preempted"] = preempted()
            else:
                record["rows"][kind] = compare(kind, one)
            print(kind, json.dumps(record["preempted"] if kind == "preempted" else record["rows"][kind]), flush=True)
    record |= {
        "command": "python -m tests.bench.launch",
        "run_file": "configs/digits.yaml",
        "machine": f"{os.cpu_count()} cores, CPU ranks over gloo, hosts and nodes as network namespaces",
        "load": round(os.getloadavg()[1], 1),
    }
    record["rows"] = {kind: record["rows"][kind] for kind in KINDS if kind in record["rows"]}
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
