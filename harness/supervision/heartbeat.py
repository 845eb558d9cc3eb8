"""A rank's heartbeat: a small mapped file, in its launcher's memory, that says where the rank stands. Writing it takes no
system call; whoever supervises reads it.

Two things move in it: the beat, by a thread, shows that the process runs; the ticks, by the loop, show that training makes
progress. All times are of the monotonic clock, which the processes of one machine share. A field is written by one writer only. The
signals that the rank hears are appended, a byte each (signal_record.py).
"""

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from harness.telemetry.rank_window import RankWindow

Phase = Literal["start", "train", "eval", "checkpoint", "end", "data", "recover"]
PHASES: tuple[Phase, ...] = ("start", "train", "eval", "checkpoint", "end", "data", "recover")
_START, _TRAIN, _END_PHASE = 0, 1, 4
WARM_TICKS = 3
"""Ticks after which a phase is warm: its first ones compile, allocate and connect."""

_MAGIC = b"WBP1"
_LOOP = struct.Struct("<dqqBB")
"""moved_s, ticks, step, phase, warm: the loop's part."""
_BEAT, _STOP, _END = struct.Struct("<d"), struct.Struct("<B"), struct.Struct("<idH1000s")
_GROUP = struct.Struct("<H")
_AT_PID, _AT_BEAT, _AT_STOP, _AT_LOOP, _AT_GROUP, _AT_END, _SIZE = 4, 16, 24, 32, 60, 64, 64 + _END.size
_RUNNING = -1


@dataclass(frozen=True)
class Beat:
    """What a heartbeat says. `step` counts optimizer steps that were begun; `status` is None until the rank has reported its end.

    `stopping` is the number of the signal that asked for a stop, 0 where none did; `signals` are all that arrived. `group` counts
    the process groups that the rank has trained in; 0 where it cannot do without a rank that is lost.
    """

    pid: int
    beat_s: float
    moved_s: float
    ticks: int
    step: int
    phase: Phase
    warm: bool
    stopping: int = 0
    status: int | None = None
    ended_s: float = 0.0
    text: str = ""
    signals: tuple[int, ...] = ()
    group: int = 0


@final
class Heartbeat:
    """Writes a rank's heartbeat to `path`; without one, to nowhere. `on_warm` hears whether the loop is warm, at each change."""

    def __init__(self, path: Path | None = None, on_warm: Callable[[bool], None] = lambda _: None) -> None:
        self.on_warm = on_warm
        self.window: RankWindow | None = None
        """What this rank's last window took, for rank_status.py; no part of the mapped file."""
        self._buffer: mmap.mmap | bytearray = bytearray(_SIZE)
        self._ticks, self._step, self._phase, self._warm = 0, 0, 0, False
        self._seen = dict.fromkeys(range(len(PHASES)), 0)
        if path is not None:
            with suppress(OSError), path.open("wb+") as f:  # the launcher may be gone
                f.truncate(_SIZE)
                self._buffer = mmap.mmap(f.fileno(), _SIZE)
        self._put(_AT_PID, struct.pack("<q", os.getpid()))
        self._put(_AT_END, _END.pack(_RUNNING, 0.0, 0, b""))
        self._write()
        self.beat()
        self._buffer[:4] = _MAGIC

    def _put(self, at: int, data: bytes) -> None:
        """Write in one copy: pack_into writes zeros first, which a reader could take for a rank that never made progress."""
        self._buffer[at : at + len(data)] = data

    def _write(self) -> None:
        self._put(_AT_LOOP, _LOOP.pack(time.monotonic(), self._ticks, self._step, self._phase, self._warm))

    def beat(self) -> None:
        """Record that the process runs."""
        self._put(_AT_BEAT, _BEAT.pack(time.monotonic()))

    def tick(self) -> None:
        """Count progress: the loop begins an optimizer step, or the next batch of an evaluation."""
        if self._phase == _START:
            self._set(_TRAIN, False)
        self._ticks += 1
        self._step += self._phase == _TRAIN
        self._seen[self._phase] += 1
        if not self._warm and self._seen[self._phase] >= WARM_TICKS:
            self._set(self._phase, True)
        self._write()

    @property
    def step(self) -> int:
        """The optimizer step that the loop is in, or was in last."""
        return self._step

    @property
    def now(self) -> Beat:
        """What the heartbeat says."""
        return _beat(bytes(self._buffer))

    def at(self, step: int) -> None:
        """Record how many optimizer steps of the run are done."""
        self._step = step

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Inside the context the loop is in this phase, afterwards in the one before.

        The phases `checkpoint` and `end` never become warm.
        """
        before, warm = self._phase, self._warm
        number = PHASES.index(name)
        self._set(number, name in ("train", "eval") and self._seen[number] >= WARM_TICKS)
        try:
            yield
        finally:
            self._set(before, warm)

    def in_group(self, number: int) -> None:
        """Record in which process group, counted from 1, this rank trains; 0: it cannot go on without a peer that is lost."""
        self._put(_AT_GROUP, _GROUP.pack(number))

    def ending(self) -> None:
        """Record that the loop is over and the run is closing."""
        self._set(_END_PHASE, False)

    def _set(self, phase: int, warm: bool) -> None:
        changed, self._phase, self._warm = warm != self._warm, phase, warm
        self._write()
        if changed:
            self.on_warm(warm)

    def stopping(self, signal: int) -> None:
        """Record the signal that asked this rank to stop."""
        self._put(_AT_STOP, _STOP.pack(signal))

    def ended(self, status: int, text: str = "") -> None:
        """Record the rank's exit status; only the first call counts."""
        if _END.unpack_from(self._buffer, _AT_END)[0] == _RUNNING:
            raw = text.encode()[:1000]
            self._put(_AT_END, _END.pack(status, time.monotonic(), len(raw), raw))


def read(path: Path) -> Beat | None:
    """The heartbeat in a file; None if no rank has written one yet."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    return _beat(raw) if len(raw) >= _SIZE and raw[:4] == _MAGIC else None


def _beat(raw: bytes) -> Beat:
    """The fields of a heartbeat's bytes."""
    moved, ticks, step, phase, warm = _LOOP.unpack_from(raw, _AT_LOOP)
    status, ended, length, text = _END.unpack_from(raw, _AT_END)
    return Beat(
        pid=struct.unpack_from("<q", raw, _AT_PID)[0],
        beat_s=_BEAT.unpack_from(raw, _AT_BEAT)[0],
        moved_s=moved,
        ticks=ticks,
        step=step,
        phase=PHASES[phase],
        warm=bool(warm),
        stopping=_STOP.unpack_from(raw, _AT_STOP)[0],
        status=None if status == _RUNNING else status,
        ended_s=ended,
        text=text[:length].decode(errors="replace"),
        signals=tuple(raw[_SIZE:]),
        group=_GROUP.unpack_from(raw, _AT_GROUP)[0],
    )
