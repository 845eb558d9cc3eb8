"""Rank 0's store, where the ranks leave each other's addresses: bound to the one address that was asked for.

torch's own listens on every interface, and whoever reaches it may write to it.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist

from harness.config.errors import UserError
from harness.distributed.group import make_group
from harness.plan.world import place
from harness.supervision.output_redirect import say

_WAITING = 4096
"""Backlog of the listening socket: ranks that may connect at once."""
_COUNT, _SEEN = "ranks that have connected", "ranks that know every rank's backend"
_LOOK_S = (0.02, 1.0)
"""Pause between two polls for the other ranks: the first, and the longest."""
_QUIET_S = 20.0
"""A longer wait is reported, once."""
_CONNECT = timedelta(seconds=30)
"""How long to connect may take where rank 0 has answered before."""


@final
class StoppedError(Exception):
    """A stop was asked for before the ranks had come together."""


def _never() -> bool:
    return False


def meet(backend: str, limit_s: float, stop: Callable[[], bool] = _never, environ: Mapping[str, str] = os.environ) -> None:
    """Make the default process group over such a store, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Does nothing for one rank. Where torchrun's agents keep the store (TORCHELASTIC_USE_AGENT_STORE), it is theirs, as torch would
    use it. The wait is in Python: in torch's no signal is heard, and a rank whose peers do not come would have to be killed. Raises
    DistStoreError where the others are not there in time, StoppedError where `stop` said so meanwhile, UserError where not all use
    this backend.
    """
    here = place(environ)
    if here.size == 1 or dist.is_initialized():
        return
    host, port, limit = environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), timedelta(seconds=limit_s)
    patience = _Patience(time.monotonic() + limit_s, stop)
    agents = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = here.rank == 0 and not agents
    listening = _listen(host, port) if serves else None
    if not serves:
        while not _open(host, port):
            patience.wait(f"no answer from {'torchrun' if agents else 'rank 0'} at {host}:{port}")
    fd = None if listening is None else listening.detach()
    store: Any = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, here.size, serves, min(limit, _CONNECT), wait_for_workers=False, master_listen_fd=fd
    )
    if agents:
        store = dist.PrefixStore(f"/worker/attempt_{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
    store.set_timeout(limit)
    store.add(backend, 1)
    _gather(store.add, here.size, patience)
    if (alike := store.add(backend, 0)) < here.size:
        if serves:
            _gather(store.add, here.size, patience, _SEEN)  # rank 0 keeps the store until all have read it
        else:
            store.add(_SEEN, 1)
        at = f"{alike} of {here.size} ranks use {backend}, as this one on {os.uname().nodename} does; the others use another device"
        raise UserError("world", at, "give every rank a GPU that torch can use, or ask all for the CPU: ACCELERATE_USE_CPU=true")
    make_group(backend, store, here.rank, here.size, limit)


@final
class _Patience:
    """Waits, a little longer each time, until a deadline or a stop."""

    def __init__(self, deadline_s: float, stop: Callable[[], bool]) -> None:
        self._deadline_s, self._stop, self._pause_s = deadline_s, stop, _LOOK_S[0]
        self._tell_s = time.monotonic() + _QUIET_S

    def over(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop()

    def wait(self, missing: str) -> None:
        """Raises StoppedError, and DistStoreError, which says what is `missing`."""
        if self._stop():
            raise StoppedError
        now_s = time.monotonic()
        if now_s > self._deadline_s:
            raise dist.DistStoreError(f"timed out: {missing}")
        if now_s > self._tell_s:
            self._tell_s = self._deadline_s
            say(f"note: {missing}; waiting for up to {self._deadline_s - now_s:.0f} s more (Ctrl-C or SIGTERM ends it)")
        time.sleep(self._pause_s)
        self._pause_s = min(1.5 * self._pause_s, _LOOK_S[1])


def _gather(add: Callable[[str, int], int], size: int, patience: _Patience, count: str = _COUNT) -> None:
    """Wait until all ranks are counted.

    A rank that gives up subtracts itself, unless it was the last one that the others waited for.
    """
    here = add(count, 1)
    while here < size:
        if patience.over():
            if add(count, -1) < size - 1:
                raise StoppedError
            add(count, 1)
            return
        patience.wait(f"{here} of {size} ranks have connected")
        here = add(count, 0)


def _open(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def _listen(host: str, port: int) -> socket.socket | None:
    """A socket on that address; None if it is not this host's own (a Kubernetes Service): then torch's, on all of them."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError:
        listening.close()
        return None
    listening.listen(_WAITING)
    return listening
