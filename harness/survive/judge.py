"""What has befallen the ranks of a run: which of them was the first to fail, or stands still. Pure: looks in, words out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.survive.exits import FAILED, GUARD, MEMORY, STOPPED, USER
from harness.survive.pulse import Beat

SILENT_S = 3.0
"""A beat this old is that of a process that does not run: stopped, or starved."""
_LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|peer|timed out|socket|NCCL|remote process", re.IGNORECASE)

Kind = Literal["failed", "lost", "memory", "killed", "hung", "user", "guard", "agent"]
_KINDS: dict[int, Kind] = {FAILED: "failed", USER: "user", GUARD: "guard", MEMORY: "memory"}
_ENDED_WELL = (0, STOPPED)


@dataclass(frozen=True)
class Look:
    """A rank as it was seen: its pulse (None before its first), whether its process is there, and whether that is stopped."""

    rank: int
    beat: Beat | None
    alive: bool
    frozen: bool = False


@dataclass(frozen=True)
class Fault:
    """What went wrong, with which rank (None: not one alone), at which optimizer step. `lost`: a rank that lost another one."""

    kind: Kind
    rank: int | None
    step: int
    text: str

    def __str__(self) -> str:
        """In words."""
        who = "" if self.rank is None else f"rank {self.rank} "
        return f"{who}{self.text} at step {self.step}" if self.step else f"{who}{self.text} before the first step"


def first_failure(looks: Sequence[Look]) -> Fault | None:
    """The rank that failed, or vanished without a word, before the others did. A rank that only lost another one comes last."""
    found: list[tuple[bool, float, Fault]] = []
    for look in looks:
        beat = look.beat
        if beat is None:
            continue
        if beat.status is None and not look.alive and not beat.stopping:
            found.append((False, beat.beat_s, Fault("killed", look.rank, beat.step, "was killed")))
        elif beat.status is not None and beat.status not in _ENDED_WELL:
            kind = _KINDS.get(beat.status, "failed")
            words = beat.text if kind in ("user", "guard", "memory") else f"failed: {beat.text}"
            late = kind == "failed" and bool(_LOST_PEER.search(beat.text))
            found.append((late, beat.ended_s, Fault("lost" if late else kind, look.rank, beat.step, words)))
    return min(found, key=lambda f: f[:2])[2] if found else None


def cut_short(looks: Sequence[Look]) -> int:
    """The signal by which a rank was ended at once while it was stopping on request; 0 where none was."""
    return next((b.stopping for x in looks if (b := x.beat) and b.status is None and not x.alive and b.stopping), 0)


def furthest(looks: Sequence[Look]) -> int:
    """The last optimizer step that any rank has begun."""
    return max((look.beat.step for look in looks if look.beat), default=0)


def hung(looks: Sequence[Look], now_s: float, began_s: float, hang_s: float, start_s: float) -> Fault | None:
    """Whether the run stands still: every rank that has not ended is past its limit. Names the rank that holds up the others."""
    if not any(look.beat for look in looks) and now_s - began_s > start_s:
        return Fault("hung", None, 0, f"no rank came up for {now_s - began_s:.0f} s")
    running = [(look, look.beat) for look in looks if look.beat is not None and look.beat.status is None and look.alive]
    if not running or any(now_s - beat.moved_s < (hang_s if beat.warm else start_s) for _, beat in running):
        return None
    step = min(beat.step for _, beat in running)
    since = min(now_s - beat.moved_s for _, beat in running)
    frozen = [look for look, beat in running if look.frozen or now_s - beat.beat_s > SILENT_S]
    behind = [look for look, beat in running if beat.ticks == min(b.ticks for _, b in running)]
    if frozen:
        what = "its process is stopped (SIGSTOP)" if frozen[0].frozen else "its process does not run"
        return Fault("hung", frozen[0].rank, step, f"hung for {since:.0f} s, {what},")
    if len(behind) < len(running):
        return Fault("hung", behind[0].rank, step, f"hung for {since:.0f} s, behind the others,")
    return Fault("hung", None, step, f"no rank went on for {since:.0f} s,")


def result(looks: Sequence[Look]) -> int | None:
    """The exit status when all ranks have told their end well; None before."""
    told = [look.beat.status if look.beat else None for look in looks]
    if not told or any(status not in _ENDED_WELL for status in told):
        return None
    return STOPPED if STOPPED in told else 0
