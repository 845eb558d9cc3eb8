"""A port for a test that must name one before anybody listens there."""

import os
import socket
from pathlib import Path

_HELD: list[socket.socket] = []
"""What keeps each port ours, until this process ends."""
FIRST = 10_000


def reserve_port() -> int:
    """A free port of loopback that no other test gets, nor, where the kernel gives higher ones, anybody who asks it."""
    last = max(
        int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]), FIRST + 5_000
    )  # a range may begin at 1024
    count = last - FIRST
    for step in range(count):
        port = FIRST + (os.getpid() * 101 + step) % count
        mark = socket.socket(socket.AF_UNIX)  # a name without a file, which goes with its process
        try:
            mark.bind(f"\0widebatch-tests-{port}")
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            mark.close()
            continue
        _HELD.append(mark)
        return port
    raise AssertionError(f"every port from {FIRST} to {last} is in use")
