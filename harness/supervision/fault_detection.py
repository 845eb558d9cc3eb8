"""What went wrong with the ranks of a run: which was the first to fail, or hangs. Pure: observations in, text out."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.supervision.exit_codes import FAILED, GUARD, MEMORY, STOPPED, UNSAVED, USER
from harness.supervision.heartbeat import Beat, Phase

SILENT_S = 3.0
"""A process whose last beat is this old does not run: it is stopped, or gets no CPU."""
_LOST_PEER = re.compile(r"connection (closed|reset|refused)|broken pipe|peer|timed out|socket|NCCL|remote process", re.IGNORECASE)

Kind = Literal["failed", "lost", "memory", "killed", "hung", "user", "guard", "unsaved", "agent"]
_KINDS: dict[int, Kind] = {FAILED: "failed", USER: "user", GUARD: "guard", MEMORY: "memory", UNSAVED: "unsaved"}
_ENDED_WELL = (0, STOPPED)
_DOING: dict[Phase, str] = {
    "start": "while starting",
    "data": "in the recipe's data()",
    "train": "in training",
    "eval": "in an evaluation",
    "checkpoint": "at a checkpoint",
    "end": "while ending",
    "recover": "while the ranks that are left come together",
}


@dataclass(frozen=True)
class RankStatus:
    """A rank as it was seen: its heartbeat (None before its first), whether its process is there, and whether that is stopped."""

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
        """The fault as text."""
        who = "" if self.rank is None else f"rank {self.rank} "
        return f"{who}{self.text} at step {self.step}" if self.step else f"{who}{self.text} before the first step"


def lost_a_peer(text: str) -> bool:
    """Whether an error's text is that of a rank that only lost another one."""
    return bool(_LOST_PEER.search(text))


def vanished(look: RankStatus) -> bool:
    """Whether a rank is gone without a word: it was killed, or aborted."""
    return look.beat is not None and look.beat.status is None and not look.alive and not look.beat.stopping


def first_failure(looks: Sequence[RankStatus]) -> Fault | None:
    """The rank that failed, or vanished without a report, before the others did. A rank that only lost another one comes last."""
    found: list[tuple[bool, float, Fault]] = []
    for look in looks:
        beat = look.beat
        if beat is None:
            continue
        if vanished(look):
            aborted = signal.SIGABRT in beat.signals  # NCCL's watchdog aborts a process whose collective timed out
            words = "aborted (SIGABRT), as happens when a rank loses its peers," if aborted else "was killed"
            found.append((aborted, beat.beat_s, Fault("lost" if aborted else "killed", look.rank, beat.step, words)))
        elif beat.status is not None and beat.status not in _ENDED_WELL:
            kind = _KINDS.get(beat.status, "failed")
            words = beat.text if kind in ("user", "guard", "memory", "unsaved") else f"failed: {beat.text}"
            late = kind == "failed" and lost_a_peer(beat.text.partition(' (File "')[0])
            found.append((late, beat.ended_s, Fault("lost" if late else kind, look.rank, beat.step, words)))
    return min(found, key=lambda f: f[:2])[2] if found else None


def cut_short(looks: Sequence[RankStatus]) -> int:
    """The signal by which a rank was ended at once while it was stopping on request; 0 where none was."""
    return next((b.stopping for x in looks if (b := x.beat) and b.status is None and not x.alive and b.stopping), 0)


def furthest(looks: Sequence[RankStatus]) -> int:
    """The last optimizer step that any rank has begun."""
    return max((look.beat.step for look in looks if look.beat), default=0)


def hung(
    looks: Sequence[RankStatus], now_s: float, began_s: float, hang_s: float, start_s: float, step_s: float | None = None
) -> Fault | None:
    """Whether the run hangs: every rank that has not ended is past its limit. Names the rank that the others wait for.

    `step_s`: the limit of a rank in training, from the usual length of its steps, where it is lower than `hang_s`.
    """
    if step_s is not None and step_s >= hang_s:
        step_s = None
    if not any(look.beat for look in looks) and now_s - began_s > start_s:
        return Fault("hung", None, 0, f"no rank started within {now_s - began_s:.0f} s, longer than restart.start_s,")
    running = [(look, look.beat) for look in looks if look.beat is not None and look.beat.status is None and look.alive]
    if not running or any(now_s - beat.moved_s < _limit(beat, hang_s, start_s, step_s) for _, beat in running):
        return None
    step = min(beat.step for _, beat in running)
    since = f"for {min(now_s - beat.moved_s for _, beat in running):.0f} s"
    return _silent(running, now_s, step, since) or _held_up(running, step, since, by_steps=step_s is not None)


def _limit(beat: Beat, hang_s: float, start_s: float, step_s: float | None) -> float:
    if not beat.warm:
        return start_s
    return hang_s if step_s is None or beat.phase != "train" else step_s


def _silent(running: Sequence[tuple[RankStatus, Beat]], now_s: float, step: int, since: str) -> Fault | None:
    """The fault of a rank whose process does not run, if there is one."""
    look = next((look for look, beat in running if look.frozen or now_s - beat.beat_s > SILENT_S), None)
    if look is None:
        return None
    what = "its process is stopped (SIGSTOP)" if look.frozen else "its process gets no CPU"
    return Fault("hung", look.rank, step, f"hung {since}, {what},")


def _held_up(running: Sequence[tuple[RankStatus, Beat]], step: int, since: str, *, by_steps: bool) -> Fault:
    """The fault of ranks that all run and do not continue: that of the one behind the others, if one is."""
    least = min(beat.ticks for _, beat in running)
    behind = [(look, beat) for look, beat in running if beat.ticks == least]
    if len(behind) < len(running):
        look, beat = behind[0]
        return Fault("hung", look.rank, step, f"hung {since} {_busy(beat, by_steps=by_steps)}, behind the others,")
    busy = next((beat for _, beat in running if beat.phase == "data"), running[0][1])
    return Fault("hung", None, step, f"no rank made progress {since} {_busy(busy, by_steps=by_steps)},")


def _busy(beat: Beat, *, by_steps: bool) -> str:
    """The phase in which a rank hangs, and the setting with its time limit."""
    if by_steps and beat.warm and beat.phase == "train":
        return f"{_DOING[beat.phase]}, longer than the usual step by restart.hang_factor"
    return f"{_DOING[beat.phase]}, longer than restart.{'hang_s' if beat.warm else 'start_s'}"


def result(looks: Sequence[RankStatus]) -> int | None:
    """The exit status when all ranks have reported a good end; None before."""
    told = [look.beat.status if look.beat else None for look in looks]
    if not told or any(status not in _ENDED_WELL for status in told):
        return None
    return STOPPED if STOPPED in told else 0
