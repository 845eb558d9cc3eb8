"""Which network interface the ranks' gloo traffic takes: the one asked for, or the one with the route to the rendezvous host.

By default gloo takes the address of the host's own name. Where that is 127.0.0.1, one node fails at once and the others wait.
"""

import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.config.errors import UserError
from harness.plan.world import place

VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
_LISTENS = "0A"


def interface(environ: Mapping[str, str], *, cpu: bool) -> str | None:
    """The interface to name to gloo: loopback for ranks of one node that meet there; None if gloo may choose.

    Raises UserError as `toward`, and, for CPU ranks, which have nothing but gloo, where the rendezvous host is this host under an
    address that no other can reach.
    """
    here, asked = place(environ), environ.get(VARIABLE)
    if here.size == 1 or (here.nodes == 1 and asked is not None):
        return asked
    host = environ["MASTER_ADDR"]
    if here.nodes == 1:  # gloo would listen on the address of the host's name, where others reach it
        met = _resolve(host, "MASTER_ADDR")
        return addresses().get(met) if ipaddress.ip_address(met).is_loopback else None
    own, name = toward(host, asked, setting="MASTER_ADDR")
    if asked is None and ipaddress.ip_address(own).is_loopback:
        if cpu:
            raise loopback(host, setting="MASTER_ADDR")
        return None
    return name


def toward(host: str, asked: str | None, *, setting: str) -> tuple[str, str | None]:
    """(own address, name of its interface) by which this host reaches `host`: over the interface asked for, or by the route.

    Raises UserError if the host is not known here, cannot be reached, or not over the interface asked for, or that is not there.
    """
    there, own = _resolve(host, setting), addresses()
    if asked is None:
        mine = _source(there, host, setting)
        return mine, own.get(mine)
    known = sorted(name for _, name in socket.if_nameindex())
    if asked not in known:
        raise UserError("--interface", f"is {asked!r}, but {socket.gethostname()} has {', '.join(known)}", "name one of them")
    leading = [address for address, name in own.items() if name == asked and _leads(address, there)]
    if not leading:
        at = f"{asked} does not lead from {socket.gethostname()} to the rendezvous host {host} ({there})"
        raise UserError("--interface", at, f"known: {', '.join(known)}")
    return leading[0], asked


def loopback(host: str, *, setting: str) -> UserError:
    """The UserError for a rendezvous host whose name resolves to 127.0.0.1 or the like on the host itself."""
    at = f"{host} is {_resolve(host, setting)} on {socket.gethostname()}, which no other host can reach (see /etc/hosts)"
    return UserError(setting, at, "give the address on the network between the hosts, or --interface")


def addresses() -> dict[str, str]:
    """This host's addresses, IPv4 and IPv6: address -> name of the interface."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an IPv4 address
            found[socket.inet_ntoa(answer[20:24])] = name
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else []:
        digits, *_, name = line.split()
        found[str(ipaddress.IPv6Address(bytes.fromhex(digits)))] = name
    return found


def listening(pids: Iterable[int]) -> list[str]:
    """Where these processes take connections: `ADDRESS:PORT (INTERFACE)`, of all interfaces `*:PORT`."""
    held = {str(link.readlink()) for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    names, found = addresses(), set[str]()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else []:
            local, state, inode = (line.split()[n] for n in (1, 3, 9))
            if state == _LISTENS and f"socket:[{inode}]" in held:
                address, port = _address(local)
                where = "*" if ipaddress.ip_address(address).is_unspecified else address
                found.add(f"{where}:{port} ({names.get(address, 'every interface' if where == '*' else 'no interface')})")
    return sorted(found)


def _address(text: str) -> tuple[str, int]:
    """An address and port as the kernel's tables write them: words of 4 bytes in the machine's order."""
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[n : n + 8]) for n in range(0, len(digits), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def _resolve(host: str, setting: str) -> str:
    """The address of a host. Raises UserError."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as e:
        at = f"{host!r} is not known on {socket.gethostname()} ({e.strerror})"
        raise UserError(setting, at, "give a name that every host can resolve, or an address") from e


def _source(address: str, host: str, setting: str) -> str:
    """The own address from which the kernel would send to `address`; nothing is sent. Raises UserError."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError as e:
            at = f"no way from {socket.gethostname()} to {host} ({address}): {e.strerror}"
            raise UserError(setting, at, "check the network between the hosts, or give another address") from e
        return str(probe.getsockname()[0])


def _leads(own: str, address: str) -> bool:
    """Whether the kernel would send to `address` from the address `own`."""
    if _family(own) != _family(address):
        return False
    with socket.socket(_family(own), socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((own, 0))
            probe.connect((address, 9))
        except OSError:
            return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
