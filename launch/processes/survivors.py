"""Ranks that are lost while the others continue: which they are, and whether the others do.

The ranks decide by themselves (harness/training/recovery.py). Here it is seen that they have, and counted: it is a fault that
restart.budget answers. Where one of them fails, or all hang, what was lost counts as the fault it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

from harness.supervision.fault_detection import RankStatus, first_failure, vanished
from harness.supervision.output_redirect import say
from launch.processes.restart_policy import Restarts

_STARTING = ("start", "data")
"""Phases of a rank that is about to train: it notices then that another one is gone, if that one has begun to."""


@final
@dataclass
class Survivors:
    """Of one start of the ranks. `lost`: ranks that the others continue without; `newest`: the newest checkpoint, as a name."""

    restarts: Restarts
    newest: Callable[[], str]
    lost: set[int] = field(default_factory=set)
    _group: int = 1

    def among(self, looks: Sequence[RankStatus]) -> list[RankStatus]:
        """The ranks that count."""
        return [look for look in looks if look.rank not in self.lost]

    def answerable(self, looks: Sequence[RankStatus]) -> list[RankStatus]:
        """These ranks, less those without which the others continue, or are about to."""
        rest = [look for look in looks if not vanished(look)]
        gone = [look for look in looks if vanished(look)]
        fault = first_failure(looks) if gone and _can_continue(rest, gone) else None
        after = "" if fault is None else self.restarts.after(fault, self.newest())
        if isinstance(after, str):
            return list(looks)
        groups = [look.beat.group for look in rest if look.beat]
        if min(groups) > self._group:
            self._group, self.restarts = max(groups), after
            self.lost |= {look.rank for look in gone}
            left = "1 rank continues" if len(rest) == 1 else f"{len(rest)} ranks continue"
            say(f"note: {fault}; {left} without a restart, fault {after.used} of {after.budget}")
        return rest


def _can_continue(rest: Sequence[RankStatus], gone: Sequence[RankStatus]) -> bool:
    """Whether ranks may do without those that are gone: those had begun to train, and rank 0, which has the journal, is there."""
    began = all(look.rank and look.beat and look.beat.group for look in gone)
    return began and all(b and b.status is None and (b.group or b.phase in _STARTING) for b in (look.beat for look in rest))
