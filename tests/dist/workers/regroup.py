"""Worker of test_recovery: four ranks of which some die, for each case; what the others come to is printed, a line of JSON a case.

It forks its ranks itself: a launcher would end them all.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.distributed import peers as module
from harness.distributed.group import make_group
from harness.distributed.peers import NotInPlaceError, Peers
from harness.supervision.heartbeat import Heartbeat

RANKS = 4
LIMIT_S = 600.0


def die(*_: object) -> None:
    """As if the kernel had run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def work(case: str, rank: int, port: int, folder: Path) -> list[int] | str:
    """A rank's life: the seats that it ends among, or why it does not."""
    heartbeat = Heartbeat(folder / f"{rank}.pulse")
    store: Any = dist.TCPStore("localhost", port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
    make_group("gloo", store, rank, RANKS, timedelta(seconds=LIMIT_S))
    peers = Peers(rank, [folder / f"{other}.pulse" for other in range(RANKS)], heartbeat)
    dist.barrier()  # all have their pulses
    peers.watch()
    dist.barrier()
    ones = torch.ones(1)
    victim = 0 if case == "rank 0" else 2
    try:
        if rank == victim:
            if case == "failed":
                heartbeat.ended(1, "an error of its own, which all would meet")
            die()
        while True:
            dist.all_reduce(ones)
    except RuntimeError as e:
        module.NEWS_S = 2.0 if case == "failed" else module.NEWS_S
        lost = peers.lost(e)
    if not lost:
        heartbeat.ended(1, "it has lost a peer")  # nor is this one, for the others
        return "none is lost"
    assert lost == [victim]
    module.CONNECT_S = 2.0  # on a machine that is too busy for it they try again
    if case == "one more meanwhile" and rank == 3:
        vars(module)["join_again"] = die  # when all that are left have said so
    if case == "late" and rank == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        peers.meet("8" if case == "apart" and rank == 1 else "7", 1.0 if case == "late" else LIMIT_S)
    except NotInPlaceError as e:
        return str(e)
    ones.fill_(1)
    dist.all_reduce(ones)
    assert ones.item() == len(peers.seats) == dist.get_world_size()
    return peers.seats


def run(case: str, folder: Path) -> dict[str, Any]:
    """What each rank of a case that is left comes to."""
    folder.mkdir()
    store_port, store = _forked(_store)
    port = int(os.read(store_port, 16))
    found: dict[str, Any] = {}
    ranks = [_forked(partial(_work, case, rank, port, folder)) for rank in range(RANKS)]
    for rank, (pipe, _) in enumerate(ranks):
        if case == "late" and rank == 3:
            os.kill(ranks[3][1], signal.SIGKILL)
        if said := os.read(pipe, 1 << 16):
            found[str(rank)] = json.loads(said)
    for pid in (store, *(pid for _, pid in ranks)):
        if pid == store:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {"case": case, "ranks": found}


def _work(case: str, rank: int, port: int, folder: Path) -> str:
    return json.dumps(work(case, rank, port, folder))


def _store() -> str:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    os.write(1, str(store.port).encode())
    signal.pause()
    return ""


def _forked(action: Callable[[], str]) -> tuple[int, int]:
    """(what a child that does this writes to its standard output, its process)."""
    mine, its = os.pipe()
    pid = os.fork()
    if pid:
        os.close(its)
        return mine, pid
    os.dup2(its, 1)
    try:
        os.write(1, action().encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    for name in ("one", "one more meanwhile", "apart", "failed", "rank 0", "late"):
        print(json.dumps(run(name, Path(name))), flush=True)
    sys.exit(0)
