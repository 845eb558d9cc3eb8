"""Rank 0's store, where the ranks leave each other's addresses: bound to the one address that was asked for.

torch's own listens on every interface, and whoever reaches it may write to it.
"""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from harness.plan.world import place

_WAITING = 4096
"""Ranks that may knock at once."""


def meet(backend: str, limit_s: float, environ: Mapping[str, str] = os.environ) -> None:
    """Make the default process group over such a store, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Does nothing for one rank, nor where torchrun's agents keep the store (TORCHELASTIC_USE_AGENT_STORE). Raises DistStoreError
    where rank 0 is not there in time.
    """
    here = place(environ)
    if here.size == 1 or environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or dist.is_initialized():
        return
    host, port, limit = environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), timedelta(seconds=limit_s)
    listening = _listen(host, port) if here.rank == 0 else None
    fd = None if listening is None else listening.detach()
    store = dist.TCPStore(host, port, here.size, here.rank == 0, limit, master_listen_fd=fd)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=limit)


def _listen(host: str, port: int) -> socket.socket | None:
    """A socket on that address; None where it is not this host's own (a Kubernetes Service): then torch's, on all of them."""
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
