"""Runs on several hosts without a scheduler: network namespaces, each with a name, an address and a cable that can be cut."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import Hosts, missing
from tests.cluster.slurm import wait_until
from tests.dist.test_resume import EPOCHS, SIZE, journal, run_file, trained_ids
from tests.support.processes import LIMIT_S, environ, run_ranks

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
MEET = ("--rendezvous", "n1:29400")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts."""
    with Hosts(tmp_path_factory.mktemp("hosts"), 2) as up:
        yield up


class Runs:
    """`widebatch launch` on hosts, as a context that ends what is left; what each prints goes to a file."""

    def __init__(self, hosts: Hosts, folder: Path, *flags: str, samples: int = SIZE) -> None:
        self.hosts, self.folder, self.flags = hosts, folder, ("--recipe.samples", str(samples), *flags)
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *exc: object) -> None:
        for number in range(1, self.hosts.count + 1):
            self.hosts.kill(number)
        for process in self.started:
            process.wait(timeout=LIMIT_S)

    def start(self, number: int) -> "subprocess.Popen[bytes]":
        """The same command on each host."""
        argv = [sys.executable, "-m", "launch", "launch", str(self.folder / "run.yaml"), "--gpus", "0"]
        argv += self.flags  # the samples are stated, so that the launcher need not import torch to count them
        with (self.folder / f"host{number}.log").open("ab") as log:
            inside = self.hosts.inside(number, argv)
            self.started.append(subprocess.Popen(inside, cwd=self.folder, env=environ(), stdout=log, stderr=log))
        return self.started[-1]

    def log(self) -> str:
        """What both have printed."""
        return "".join(f.read_text() for f in sorted(self.folder.glob("host*.log")))

    def worlds(self) -> list[int]:
        """The size of the world at each start of the ranks."""
        path = self.folder / "run" / "events.jsonl"
        return [start["plan"]["world_size"] for start in journal(self.folder, "start")] if path.exists() else []

    def wait_for(self, event: str, count: int = 1) -> None:
        """Wait until the journal has so many lines of a kind."""
        path = self.folder / "run" / "events.jsonl"
        wait_until(lambda: path.exists() and len(journal(self.folder, event)) >= count, f"{count} x {event}\n{self.log()[-3000:]}")


def test_two_hosts_train_as_one_process_does(hosts: Hosts, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    with Runs(hosts, tmp_path, "--procs", "2", "--nodes", "2", *MEET) as runs:
        for process in [runs.start(1), runs.start(2)]:
            assert process.wait(timeout=LIMIT_S) == 0, runs.log()
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), EPOCHS))
    start = journal(tmp_path, "start")[0]["plan"]
    assert (start["world_size"], start["nodes"]) == (2, 2)
    alone = tmp_path / "alone"
    alone.mkdir()
    run_ranks(1, ["harness", str(run_file(alone, "total: 8"))], alone)
    losses = [[step["train/loss"] for step in journal(f, "step")] for f in (tmp_path, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


LONG = ("--checkpoint.every_samples", "200", "--schedule.epochs")


@pytest.mark.cluster
@pytest.mark.parametrize("batch", ["total: 8", "per_gpu: 4"])
def test_a_host_is_lost_and_comes_back(hosts: Hosts, tmp_path: Path, batch: str) -> None:
    run_file(tmp_path, batch)
    with Runs(hosts, tmp_path, "--procs", "2", "--nodes", "1:2", *MEET, *LONG, "100000") as runs:
        runs.start(1)
        runs.start(2)
        wait_until(lambda: 2 in runs.worlds() and journal(tmp_path, "checkpoint"), "two hosts")
        hosts.kill(2)
        wait_until(lambda: runs.worlds()[-1] == 1, "the first host to go on alone")
        again = runs.start(2)
        wait_until(lambda: runs.worlds()[-1] == 2, "the second to be back")
        saved = len(journal(tmp_path, "checkpoint"))
        wait_until(lambda: len(journal(tmp_path, "checkpoint")) > saved, "a checkpoint of both")
        for process in (runs.started[0], again):
            os.kill(process.pid, signal.SIGTERM)
        assert [process.wait(timeout=LIMIT_S) for process in (runs.started[0], again)] == [75, 75], runs.log()
    assert journal(tmp_path, "end")[-1]["reason"] == "stop_requested"
    kept = last_tellings(journal(tmp_path, "step"))
    begun = [step["samples"] - step["batch/samples"] for step in kept]
    assert begun == [0, *(step["samples"] for step in kept[:-1])], "no sample is left out, and none is kept twice"
    assert min(trained_ids(tmp_path)[i] for i in range(SIZE)) >= kept[-1]["samples"] // SIZE
    sizes = {2: 8, 1: 8 if batch == "total: 8" else 4}
    for start in journal(tmp_path, "start"):
        plan = start["plan"]
        assert plan["global_batch"] == sizes[plan["world_size"]]
        assert plan["lr"] == pytest.approx(0.01 * plan["global_batch"] / 8)
    assert all(start["samples"] > 0 for start in journal(tmp_path, "start")[1:]), "went on from where it was"


def last_tellings(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that led to the result: of those that a lost host had repeated, the last telling."""
    kept: list[dict[str, Any]] = []
    for step in steps:
        while kept and kept[-1]["samples"] >= step["samples"]:
            kept.pop()
        kept.append(step)
    return kept


@pytest.mark.cluster
def test_a_host_that_is_asked_to_stop_leaves_and_loses_nothing(hosts: Hosts, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    with Runs(hosts, tmp_path, "--procs", "2", "--nodes", "1:2", *MEET, *LONG, "60") as runs:
        first, second = runs.start(1), runs.start(2)
        wait_until(lambda: 2 in runs.worlds() and journal(tmp_path, "checkpoint"), "two hosts")
        os.kill(second.pid, signal.SIGTERM)
        assert first.wait(timeout=LIMIT_S) == 0, runs.log()
        assert second.wait(timeout=LIMIT_S) == 75, runs.log()
    assert runs.worlds()[-1] == 1
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), 60)), "a stop on request saves first"


@pytest.mark.cluster  # the patience that a network file system is given
def test_a_run_folder_that_is_not_shared_is_said_by_both_hosts(hosts: Hosts, tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    (tmp_path / "run").mkdir()
    meeting = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29400"}
    worker = [sys.executable, "-m", "harness", str(path)]
    own_disk = ["sh", "-c", f'mount -t tmpfs none {tmp_path}/run && exec "$@"', "sh", *worker]
    ranks = [
        subprocess.Popen(
            hosts.inside(rank + 1, own_disk if rank else worker),
            env=environ() | meeting | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=LIMIT_S)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], told
    for text in told:
        assert f"run.dir: {tmp_path}/run on n1 is not the folder that rank 1 sees on n2; give one on a disk" in text
    assert not list((tmp_path / "run").iterdir())


MISTAKES = [
    (("--rendezvous", "n9:29400"), "--rendezvous: 'n9' is not known on n2"),
    (("--rendezvous", "10.99.0.1:29400"), "--rendezvous: no way from n2 to 10.99.0.1"),
    (("--rendezvous", "localhost:29400"), "--rendezvous: localhost is 127.0.0.1 on n2, which no other host can reach"),
    (("--rendezvous", "n1"), "--rendezvous: is ''; write HOST:PORT"),
    (("--rendezvous", "n1:0"), "--rendezvous: is 'n1:0'; write HOST:PORT"),
    ((*MEET, "--interface", "eth7"), "--interface: is 'eth7', but n2 has eth0, lo; name one of them"),
    ((*MEET, "--interface", "lo"), "--interface: lo does not lead from n2 to the rendezvous host n1 (10.77.0.1)"),
    ((*MEET, "--interface", "eth0\nid"), "--interface: is 'eth0\\nid'"),
    ((), "--nodes: more than 1, and this starts processes on this machine only; give --rendezvous, or --slurm"),
]


def test_a_way_that_leads_nowhere_is_said_before_anything_starts(hosts: Hosts, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    code = (
        "import json, sys\nfrom launch.cli import main\n"
        "for argv in json.loads(sys.argv[1]):\n    assert main(argv) == 2, argv\n"
        "assert 'torch' not in sys.modules"
    )
    argv = ["launch", "run.yaml", "--gpus", "0", "--procs", "2", "--nodes", "2", "--recipe.samples", str(SIZE)]
    every = json.dumps([[*argv, *flags] for flags, _ in MISTAKES])
    inside = hosts.inside(2, [sys.executable, "-c", code, every])
    done = subprocess.run(inside, cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    for line, (_, words) in zip(lines, MISTAKES, strict=True):
        assert line.startswith("error: " + words)
    assert not (tmp_path / "run").exists()
