"""Ranks whose peers do not answer: with NCCL nobody is told that a rank is gone. A rank that hangs is as silent over gloo."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.schema import Config
from harness.distributed.rendezvous import meet
from harness.engine.device import use_cpu
from harness.plan.plan import Plan
from harness.supervision.fault_detection import RankStatus, first_failure
from harness.supervision.heartbeat import Beat, read
from harness.supervision.launch_env import Launched, memory_files
from harness.tools import batch_trial as probe
from tests.support.faults.launching import run_file, wait_for
from tests.support.ports import reserve_port
from tests.support.processes import ROOT, environ, run_command

PATIENCE_S = 1200.0


@contextmanager
def two_ranks(path: Path, deaf_s: float) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Two ranks without anything above them that would end one for the other."""
    port, ranks = reserve_port(), list[subprocess.Popen[bytes]]()
    for rank in ("0", "1"):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        argv = [sys.executable, "-m", "tests.dist.workers.silent", str(deaf_s), str(path)]
        with (path.parent / f"{rank}.log").open("w") as log:
            ranks.append(subprocess.Popen(argv, cwd=path.parent, env=environ() | env, stdout=log, stderr=log))
    try:
        yield ranks
    finally:
        for one in ranks:
            one.kill()
            one.wait()


def test_a_rank_that_fails_ends_though_its_peers_are_silent(tmp_path: Path) -> None:
    with two_ranks(run_file(tmp_path, faults="hang@5:0 raise@4:1"), 1e9) as (_, failing):
        status = failing.wait(PATIENCE_S)
        text = (tmp_path / "1.log").read_text()
        assert status == 1, text
        assert text.count("ValueError: planted\n") == 1


def test_a_rank_that_waits_for_a_silent_peer_ends_after_sigterm(tmp_path: Path) -> None:
    """It is in a wait of C, where Python hears no signal."""
    with two_ranks(run_file(tmp_path, faults="hang@3:1"), 1.0) as (waiting, silent):
        wait_for(lambda: list(tmp_path.glob("hang@3:1.done")), "the silent rank", PATIENCE_S)

        def ended() -> bool:
            waiting.terminate()  # again and again, as the first may find it on its way into the wait
            return waiting.poll() is not None

        wait_for(ended, "end", PATIENCE_S, look_s=1)
        assert silent.poll() is None
        status = waiting.wait()
    text = (tmp_path / "0.log").read_text()
    assert status == 1, text
    assert "error: SIGTERM came 1 s ago, but this rank is blocked in a wait for other ranks" in text
    assert "in _segment" in text, "where it stood"


BEAT = Beat(pid=1, beat_s=100.0, moved_s=100.0, ticks=7, step=7, phase="train", warm=True)


def test_a_rank_that_aborts_lost_its_peers_and_is_not_the_first_to_fail(tmp_path: Path) -> None:
    """NCCL's watchdog aborts a process whose collective has timed out, and nothing of it is told in Python."""
    code = (
        "import os, sys\nfrom harness.plan.world import Place\nfrom harness.supervision.rank_monitor import present\n"
        "with present(os.environ, Place(0, 0, 2, 1), started=True):\n    os.abort()"
    )
    told = Launched(os.getpid(), str(tmp_path), str(tmp_path / "output"), pulses=memory_files(1))
    done = subprocess.run([sys.executable, "-c", code], env=environ() | told.environ(), cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGABRT
    aborted = read(told.heartbeat(0))
    assert aborted is not None
    assert (aborted.status, aborted.signals) == (None, (signal.SIGABRT,))
    late = Beat(**(vars(BEAT) | {"beat_s": aborted.beat_s + 60}))
    fault = first_failure([RankStatus(0, aborted, False), RankStatus(1, late, False)])
    assert fault is not None
    assert (fault.kind, fault.rank) == ("killed", 1), "though it was seen later"
    fault = first_failure([RankStatus(0, aborted, False), RankStatus(1, late, True)])
    assert fault is not None
    assert (fault.kind, fault.rank) == ("lost", 0)


def test_find_batch_ends_the_peers_of_a_rank_that_ran_out_of_memory(tmp_path: Path) -> None:
    """Rank 0 waits, as in a collective of NCCL, for rank 1, whose memory ran out."""
    (tmp_path / "recipe.py").write_text(
        "import os, time\nfrom dataclasses import dataclass\nfrom harness.recipes.digits import Digits\n\n\n"
        "@dataclass(frozen=True)\nclass Full(Digits):\n    def loss(self, model, batch):\n"
        "        if os.environ['RANK'] == '0':\n            time.sleep(10**6)\n"
        "        raise RuntimeError('CUDA error: out of memory')\n"
    )
    (tmp_path / "run.yaml").write_text(
        "recipe: {use: recipe.py:Full}\nbatch: {reference: 2, total: 2}\noptim: {name: sgd, lr: 0.1}\nschedule: {samples: 200}\n"
    )
    argv = ["find-batch", "run.yaml", "--gpus", "0", "--procs", "2", "--seconds", "0.01", "--memory", "64GiB", "--out", "out"]
    text = run_command([sys.executable, "-m", "launch", *argv], tmp_path, status=1, limit_s=PATIENCE_S)
    assert "micro-batch 1 does not fit (out of memory: CUDA error: out of memory)" in " ".join(text.split())


def test_a_trial_limits_the_memory_of_its_own_gpu_once_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    def joined(cpu: bool) -> torch.device:
        done.append("join")
        return torch.device("cuda", 3)

    class Properties:
        total_memory = 100

    def opened(config: Config, plan: Plan, recipe: object, *, cpu: bool) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(probe, "join", joined)
    monkeypatch.setattr(probe, "open_engine", opened)

    def properties(device: torch.device) -> type[Properties]:
        done.append(("of", device))
        return Properties

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: done.append((part, device)))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        probe.measure(load(ROOT / "configs" / "digits.yaml"), False, 1, 1, 0.01, 25)
    assert done == ["join", ("of", torch.device("cuda", 3)), (0.25, torch.device("cuda", 3))]


NONE = "but torch .* cannot use one on .*: Torch not compiled with CUDA enabled; install"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("environment", "gpus", "refused"),
    [
        ({}, 0, None),
        ({"ACCELERATE_USE_CPU": "true"}, 1, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1, None),
        ({}, 1, f"world: this machine has GPUs, {NONE}"),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, 2, f"world: this machine has GPUs, {NONE}"),
        ({"WIDEBATCH_DEVICE": "gpu"}, 0, f"world: planned for GPUs, {NONE}"),
        ({"WIDEBATCH_DEVICE": "gpu", "CUDA_VISIBLE_DEVICES": ""}, 1, f"world: planned for GPUs, {NONE}"),
        ({"WIDEBATCH_DEVICE": "gpu", "ACCELERATE_USE_CPU": "1"}, 0, "world: planned for GPUs, but ACCELERATE_USE_CPU asks"),
    ],
)
def test_a_rank_computes_on_the_cpu_only_where_that_was_meant(
    environment: Mapping[str, str], gpus: int, refused: str | None, tmp_path: Path
) -> None:
    for number in range(gpus):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    if refused is None:
        assert use_cpu(environment, tmp_path)
    else:
        with pytest.raises(UserError, match=refused):
            use_cpu(environment, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_launch_on_gpus_that_torch_cannot_use_is_refused_in_one_line(tmp_path: Path) -> None:
    argv = ["env", "CUDA_VISIBLE_DEVICES=0,1", sys.executable, "-m", "launch", "launch", str(run_file(tmp_path)), "--gpus", "2"]
    text = run_command(argv, tmp_path, status=2, limit_s=PATIENCE_S)
    errors = [line for line in text.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, text
    assert "world: planned for GPUs, but torch" in errors[0]


def test_ranks_that_use_different_backends_all_say_so() -> None:
    """One node's driver is broken: its ranks would wait over gloo for those of NCCL."""
    port, found = str(reserve_port()), dict[int, str]()

    def rank(number: int) -> None:
        here = {"RANK": str(number), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        try:
            meet("gloo" if number == 1 else "nccl", PATIENCE_S, environ=here)
        except UserError as e:
            found[number] = str(e)

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [found[n].partition(", as")[0] for n in range(3)] == [
        "world: 2 of 3 ranks use nccl",
        "world: 1 of 3 ranks use gloo",
        "world: 2 of 3 ranks use nccl",
    ]
