"""Which processes of a launch are there, as the kernel tells it. Nothing is started here."""

import os
from collections.abc import Iterable
from pathlib import Path

from harness.supervision.fault_detection import RankStatus
from harness.supervision.heartbeat import read
from harness.supervision.launch_env import VARIABLE, Launched
from harness.supervision.rank_monitor import process_state

JOB = "WIDEBATCH_JOB"
"""Environment variable that names the tool which started a process."""
GRACE_S = 60.0
"""How long workers may continue after what started them has ended: the time to save a checkpoint."""


def members(launcher: int) -> list[int]:
    """Every process that was started under this launcher, also those whose parents are gone: they carry its variable."""
    return marked(f'{VARIABLE}={{"launcher": {launcher},'.encode())


def marked(mark: bytes) -> list[int]:
    """Every other process whose environment has a variable that begins so."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if any(variable.startswith(mark) for variable in environ.split(b"\0")):
                found.append(int(entry.name))
    return found


def outermost(pids: Iterable[int]) -> list[int]:
    """The processes that a terminal's signal would reach: the groups of those whose parents are not among `pids`."""
    found: dict[int, tuple[int, int]] = {}
    for pid in pids:
        try:
            parent, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:3]
        except OSError:
            continue
        found[pid] = int(parent), int(group)
    groups = {group for parent, group in found.values() if parent not in found}
    return [pid for pid, (_, group) in found.items() if group in groups]


def there(pids: Iterable[int]) -> list[int]:
    """Which of some processes have not ended. Cheap, where `members` reads the environment of every process of the machine."""
    return [pid for pid in pids if process_state(pid) not in ("", "Z", "X")]


def kill(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def look(told: Launched, ranks: int) -> list[RankStatus]:
    """Every rank as it stands now."""
    looks = []
    for rank in range(ranks):
        beat = read(told.heartbeat(rank))
        state = process_state(beat.pid) if beat else ""
        looks.append(RankStatus(rank, beat, state not in ("", "Z", "X"), state in ("T", "t")))
    return looks
