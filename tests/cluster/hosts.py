"""Several hosts on one machine, for tests: a network namespace each, with an own host name and address, on a switch of their own.

Nothing of it shows outside: the addresses are the same in every test. The file system is shared, as on a cluster.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

NET = "10.77.0"


def missing() -> str:
    """Why there can be no hosts here, or nothing."""
    gone = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if gone:
        return f"needs {', '.join(gone)} (apt-get install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    probe = f"probe-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else ""


def ip(*argv: str) -> None:
    """Run ip(8); fails where it fails."""
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(argv)}: {done.stderr}"


class Hosts:
    """Hosts n1, n2, ... at 10.77.0.1, .2, ..., each with an interface eth0, as a context. `inside` gives the argv to run in one."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count, self.names = count, folder / "hosts"
        self._mark = f"wb{secrets.token_hex(3)}"
        lines = ["127.0.0.1 localhost", *(f"{NET}.{i} n{i}" for i in range(1, count + 1))]
        self.names.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> "Hosts":
        with ExitStack() as stack:
            switch = self._namespace(stack, "switch")
            ip("-n", switch, "link", "add", "br0", "type", "bridge")
            ip("-n", switch, "link", "set", "br0", "up")
            for i in range(1, self.count + 1):
                host = self._namespace(stack, str(i))
                ip("link", "add", f"v{i}", "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", host)
                ip("-n", switch, "link", "set", f"v{i}", "master", "br0", "up")
                ip("-n", host, "addr", "add", f"{NET}.{i}/24", "dev", "eth0")
                ip("-n", host, "link", "set", "eth0", "up")
                ip("-n", host, "link", "set", "lo", "up")
            self._stack = stack.pop_all()
        return self

    def _namespace(self, stack: ExitStack, name: str) -> str:
        full = f"{self._mark}-{name}"
        ip("netns", "add", full)
        stack.callback(ip, "netns", "del", full)
        return full

    def __exit__(self, *exc: object) -> None:
        for i in range(1, self.count + 1):
            self.kill(i)
        self._stack.close()

    def inside(self, number: int, argv: Sequence[str]) -> list[str]:
        """argv that runs `argv` on host `number`; the process keeps its id."""
        script = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self._mark}-{number}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", script, "sh", str(self.names), f"n{number}", *argv]

    def pids(self, number: int) -> list[int]:
        """The processes of a host."""
        argv = ["ip", "netns", "pids", f"{self._mark}-{number}"]
        return [int(p) for p in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()]

    def kill(self, number: int) -> None:
        """End a host's processes at once, as a power cut would."""
        while pids := self.pids(number):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def link(self, number: int, state: str) -> None:
        """Cut a host's cable (`down`), or fix it (`up`)."""
        ip("-n", f"{self._mark}-switch", "link", "set", f"v{number}", state)
