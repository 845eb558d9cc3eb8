"""Runs as Slurm jobs, on a real cluster: slurmctld, and a slurmd in each of several network namespaces."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.plan.world import World
from launch.cluster.slurm import Job, sbatch_script
from tests.cluster.hosts import Hosts
from tests.cluster.slurm import Cluster, missing, wait_until
from tests.dist.test_resume import EPOCHS, SIZE, journal, run_file, trained_ids
from tests.support.processes import run_ranks

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
NODES = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes."""
    folder = tmp_path_factory.mktemp("slurm")
    with Hosts(folder, NODES) as hosts, Cluster(folder, hosts) as up:
        yield up


def launch(cluster: Cluster, folder: Path, *flags: str, status: int = 0) -> str:
    """What `widebatch launch run.yaml --slurm` with these flags prints, on n1."""
    argv = [sys.executable, "-m", "launch", "launch", str(folder / "run.yaml"), "--slurm", "--gpus", "0"]
    argv += ["--recipe.samples", str(SIZE), *flags]  # stated, so that nothing imports torch to count it
    return cluster.ask(*argv, cwd=folder, status=status)


def submit(cluster: Cluster, folder: Path, *flags: str) -> str:
    """Submit it; the number of the job."""
    found = re.search(r"Submitted batch job (\d+)", launch(cluster, folder, "--submit", *flags))
    assert found
    return found.group(1)


def log(folder: Path) -> str:
    """What the jobs of a run folder have printed."""
    return "\n".join(f.read_text() for f in folder.rglob("slurm-*.log"))


def losses(folder: Path) -> list[float]:
    """The loss of each step."""
    return [step["train/loss"] for step in journal(folder, "step")]


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), pytest.param(4, 8, marks=pytest.mark.cluster)])
def test_a_job_on_several_nodes_trains_as_one_process_does(cluster: Cluster, tmp_path: Path, nodes: int, ranks: int) -> None:
    run_file(tmp_path, "total: 8")
    job = submit(cluster, tmp_path, "--nodes", str(nodes), "--procs", str(ranks))
    assert cluster.wait_for(job, "COMPLETED")["ExitCode"] == "0:0", log(tmp_path)
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), EPOCHS))
    start = journal(tmp_path, "start")[0]["plan"]
    assert (start["world_size"], start["nodes"]) == (ranks, nodes)
    assert len(list(tmp_path.glob("*.ids"))) == ranks
    alone = tmp_path / "alone"
    alone.mkdir()
    run_ranks(1, ["harness", str(run_file(alone, "total: 8"))], alone)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)


WORKER = """#!/bin/sh
trap 'exit 75' USR1 HUP
echo $SLURM_PROCID $SLURM_RESTART_COUNT >> {folder}/started
[ -e {folder}/over ] && exit 0
if [ -e {folder}/status ]; then exit $(cat {folder}/status); fi
while true; do sleep 0.1; done
"""
"""Stands in for Python where only what the script makes of an exit status is of interest: the cluster is real."""


def scripted(cluster: Cluster, folder: Path, status: int | None) -> str:
    """Submit the script with workers that end with `status`, or go on until they are told to stop; the number of the job."""
    worker = folder / "python"
    worker.write_text(WORKER.format(folder=folder))
    worker.chmod(0o755)
    if status is not None:
        (folder / "status").write_text(str(status))
    (folder / "logs").mkdir()
    (folder / "job").write_text(sbatch_script(Job(name="scripted", restarts=2), World(2, 2, "cpu"), folder, str(worker)))
    return cluster.ask("sbatch", "--parsable", str(folder / "job")).strip()


def started(folder: Path) -> list[str]:
    """Rank, and how often the job was queued again, at each start of a rank."""
    path = folder / "started"
    return sorted(path.read_text().splitlines()) if path.exists() else []


@pytest.mark.parametrize(
    ("status", "state", "attempts"), [(0, "COMPLETED", 1), (1, "FAILED", 3), (2, "FAILED", 1), (3, "FAILED", 1), (75, "FAILED", 1)]
)
def test_what_the_script_makes_of_an_exit_status(cluster: Cluster, tmp_path: Path, status: int, state: str, attempts: int) -> None:
    job = cluster.wait_for(scripted(cluster, tmp_path, status), state)
    assert job["ExitCode"] == f"{status}:0"
    assert job["Restarts"] == "0"
    assert len(started(tmp_path)) == 2 * attempts


@pytest.mark.cluster
def test_when_time_is_short_the_ranks_are_told_and_the_job_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    number = scripted(cluster, tmp_path, None)
    wait_until(lambda: len(started(tmp_path)) == 2, "both ranks")
    cluster.ask("scancel", "--batch", "--signal=USR1", number)  # as Slurm does --signal-s seconds before the time limit
    wait_until(lambda: cluster.job(number)["Restarts"] == "1", "the requeue")
    (tmp_path / "over").touch()
    cluster.wait_for(number, "COMPLETED")
    assert started(tmp_path) == ["0", "0 1", "1", "1 1"]


def test_a_stop_of_the_ranks_alone_does_not_bring_the_job_back(cluster: Cluster, tmp_path: Path) -> None:
    number = scripted(cluster, tmp_path, None)
    wait_until(lambda: len(started(tmp_path)) == 2, "both ranks")
    cluster.ask("scancel", "--signal=USR1", number)
    assert cluster.wait_for(number, "FAILED")["ExitCode"] == "75:0"
    assert cluster.job(number)["Restarts"] == "0"


def held(pids_of: Cluster) -> int:
    """Worker processes on the cluster's hosts."""
    pids = [pid for i in range(1, NODES + 1) for pid in pids_of.hosts.pids(i)]
    return sum(b"\0harness\0" in _command(pid) for pid in pids)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def told(folder: Path, event: str) -> bool:
    """Whether the journal has a line of this kind."""
    return (folder / "run" / "events.jsonl").exists() and bool(journal(folder, event))


MANY = 100
LONG = ("--schedule.epochs", str(MANY), "--watch.wandb", "offline")
"""A run that is still going when something happens to it."""


def check_whole(folder: Path, epochs: int) -> None:
    """Every sample was trained on exactly so often, and W&B has it all under one id."""
    assert journal(folder, "end")[-1]["reason"] == "complete"
    assert trained_ids(folder) == Counter(dict.fromkeys(range(SIZE), epochs))
    runs = {d.name.rpartition("-")[2] for d in (folder / "run" / "wandb").glob("offline-run-*")}
    assert runs == {(folder / "run" / "wandb_id").read_text()}


@pytest.mark.cluster
def test_the_signal_makes_a_checkpoint_and_the_requeued_job_goes_on_from_it(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    job = submit(cluster, tmp_path, "--nodes", "4", "--procs", "4", *LONG)
    wait_until(lambda: told(tmp_path, "window"), "the first steps")
    cluster.ask("scancel", "--batch", "--signal=USR1", job)  # as Slurm does --signal-s seconds before the time limit
    wait_until(lambda: int(cluster.job(job)["Restarts"]) == 1, "the requeue")
    assert journal(tmp_path, "end")[-1]["reason"] == "stop_requested"
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    check_whole(tmp_path, MANY)
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2
    assert len(list((tmp_path / "run" / "logs").glob("slurm-*.log"))) == 1, "the log is appended to"
    assert log(tmp_path).count("resuming from") == 1
    assert held(cluster) == 0


@pytest.mark.cluster
def test_a_job_that_a_more_urgent_one_displaces_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    job = submit(cluster, tmp_path, "--nodes", "4", "--procs", "4", *LONG)
    wait_until(lambda: told(tmp_path, "window"), "the first steps")
    urgent = cluster.urgent(tmp_path)
    cluster.wait_for(urgent, "COMPLETED")
    assert journal(tmp_path, "end")[-1]["reason"] == "stop_requested"
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    check_whole(tmp_path, MANY)
    assert held(cluster) == 0


@pytest.mark.cluster
def test_scancel_saves_and_nothing_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    job = submit(cluster, tmp_path, "--nodes", "2", "--procs", "2", *LONG)
    wait_until(lambda: told(tmp_path, "window"), "the first steps")
    cluster.ask("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    wait_until(lambda: held(cluster) == 0, "the workers to end")
    assert journal(tmp_path, "end")[-1]["reason"] == "stop_requested"
    assert told(tmp_path, "checkpoint")
    assert cluster.job(job)["JobState"] == "CANCELLED", "not queued again"
    assert cluster.job(job)["Restarts"] == "0"


@pytest.mark.cluster
def test_a_killed_rank_is_started_again_within_the_job(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    job = submit(cluster, tmp_path, "--nodes", "2", "--procs", "2", *LONG, "--checkpoint.every_samples", "400")
    wait_until(lambda: told(tmp_path, "checkpoint"), "a checkpoint")
    victim = next(pid for pid in cluster.hosts.pids(2) if b"\0harness\0" in _command(pid))
    cluster.ask("kill", "-KILL", str(victim))
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "0"
    assert "attempt 0 ended with status" in log(tmp_path)
    assert min(trained_ids(tmp_path).values()) >= MANY
    assert journal(tmp_path, "end")[-1]["reason"] == "complete"


@pytest.mark.cluster
def test_a_lost_node_queues_the_job_again(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    job = submit(cluster, tmp_path, "--nodes", "2", "--procs", "2", *LONG, "--checkpoint.every_samples", "400")
    wait_until(lambda: told(tmp_path, "checkpoint"), "a checkpoint")
    assert cluster.job(job)["NodeList"] == "n[1-2]"
    cluster.hosts.kill(2)
    wait_until(lambda: int(cluster.job(job)["Restarts"]) == 1, "the requeue")
    cluster.start_node(2)
    cluster.wait_for(job, "COMPLETED")
    assert min(trained_ids(tmp_path).values()) >= MANY
    assert journal(tmp_path, "end")[-1]["reason"] == "complete"


@pytest.mark.cluster
def test_an_array_runs_each_combination_in_a_folder_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    arrays = ("--array", "optim.lr=0.01,0.02", "--array", "run.seed=1,2", "--at-once", "2")
    job = submit(cluster, tmp_path, *arrays)
    for task in range(4):
        cluster.wait_for(f"{job}_{task}", "COMPLETED")
    ends = [(tmp_path / "run" / str(i) / "events.jsonl").read_text().splitlines()[-1] for i in range(4)]
    assert all('"reason": "complete"' in end for end in ends)
    assert len(set(ends)) == 4
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), 4 * EPOCHS))


@pytest.mark.cluster
def test_a_sweep_runs_as_an_array_and_the_same_command_shows_its_results(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    argv = [sys.executable, "-m", "launch", "sweep", str(tmp_path / "run.yaml"), "--recipe.samples", str(SIZE), "--out", "swept"]
    argv += ["--batches", "8,16", "--rules", "linear", "--seeds", "1", "--batch.micro", "2"]
    found = re.search(r"Submitted batch job (\d+)", cluster.ask(*argv, "--submit", "--gpus", "0", cwd=tmp_path))
    assert found
    for task in range(2):
        cluster.wait_for(f"{found.group(1)}_{task}", "COMPLETED")
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), 2 * EPOCHS))
    told = cluster.ask(*argv, cwd=tmp_path)
    assert "linear: holds up to batch" in told
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), 2 * EPOCHS)), "nothing was trained again"
    assert "every run is done" in cluster.ask(*argv, "--submit", "--gpus", "0", cwd=tmp_path)


@pytest.mark.cluster
def test_more_gpus_than_there_are_is_refused_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    run_file(tmp_path, "total: 8")
    argv = [sys.executable, "-m", "launch", "launch", str(tmp_path / "run.yaml"), "--submit", "--nodes", "2", "--gpus", "8"]
    last = cluster.ask(*argv, cwd=tmp_path, status=2).splitlines()[-1]
    assert last.startswith("error: --submit: sbatch refused:")
    assert "Requested node configuration is not available" in last


@pytest.mark.cluster
def test_bare_srun_starts_workers_that_find_each_other(cluster: Cluster, tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    argv = ["srun", "--nodes=3", "--ntasks=3", sys.executable, "-m", "harness", str(path), "--batch.total", "12"]
    cluster.ask(*argv, cwd=tmp_path)
    start = journal(tmp_path, "start")[0]["plan"]
    assert (start["world_size"], start["nodes"]) == (3, 3)
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), EPOCHS))
