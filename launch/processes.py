"""Which processes of a launch are there, as the kernel tells it. Nothing is started here."""

import os
from collections.abc import Iterable
from pathlib import Path

from harness.survive.judge import Look
from harness.survive.launched import VARIABLE, Launched
from harness.survive.presence import process_state
from harness.survive.pulse import read


def members(launcher: int) -> list[int]:
    """Every process that was started under this launcher, also those whose parents are gone: they carry its variable."""
    mark = f'{VARIABLE}={{"launcher": {launcher},'.encode()
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


def there(pids: Iterable[int]) -> list[int]:
    """Which of some processes have not ended. Cheap, where `members` reads the environment of every process of the machine."""
    return [pid for pid in pids if process_state(pid) not in ("", "Z", "X")]


def kill(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def look(told: Launched, ranks: int) -> list[Look]:
    """Every rank as it stands now."""
    looks = []
    for rank in range(ranks):
        beat = read(told.pulse(rank))
        state = process_state(beat.pid) if beat else ""
        looks.append(Look(rank, beat, state not in ("", "Z", "X"), state in ("T", "t")))
    return looks
