"""What each rank says of itself in the run folder, for `widebatch top`: a file for each node, in it a line of JSON for each rank.

A rank renews its own line once a second, in a thread of its own. Lines are padded to one length, so that ranks of a node write to
one file without a lock, and a folder that many hosts share holds a file for each of them.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from harness.config.plain_file import read_plain
from harness.config.run_folder import RunFolder
from harness.plan.world import Place
from harness.supervision.heartbeat import Heartbeat
from harness.supervision.output_redirect import say
from harness.supervision.safe_files import make_inside, open_own

RENEW_S = 1.0
LINE = 768
"""Bytes of a line, its end included."""
MOST = 1 << 26
"""Bytes of a node's file that are read."""
_CLOSE_S = 5.0
"""How long the end of a rank waits for its last line, where a file system does not answer."""


@dataclass(frozen=True)
class RankLine:
    """A rank as it was at `time` (Unix). `still_s`: since when it has made no progress; `window`: RankWindow's values by name.

    `status`: its exit status, None while it runs; `text` says why it failed.
    """

    rank: int
    host: str
    pid: int
    time: float
    phase: str
    step: int
    still_s: float
    window: dict[str, float | None]
    status: int | None
    text: str


@contextmanager
def rank_status(folder: Path, here: Place, heartbeat: Heartbeat) -> Iterator[None]:
    """While the context is entered, the rank at `here` renews its line in the run folder, once that is there."""
    writer = _Writer(folder, here, heartbeat)
    writer.start()
    try:
        yield
    finally:
        writer.close()


def clear(folder: Path) -> None:
    """Remove the lines of an earlier start, which may have had more ranks. To be called while no rank runs."""
    ranks = RunFolder(folder).ranks
    for file in ranks.glob("from-*.jsonl") if ranks.is_dir() else ():
        with suppress(OSError):  # a disk that takes no change: stale lines say how old they are
            file.unlink()


def read_ranks(folder: Path) -> list[RankLine]:
    """All ranks' lines in a run folder, by rank; none where there are none. What is no such line is passed over."""
    ranks = RunFolder(folder).ranks
    found: dict[int, RankLine] = {}
    for file in sorted(ranks.glob("from-*.jsonl")) if ranks.is_dir() else ():
        with suppress(OSError):
            for text in read_plain(file, MOST).split(b"\n"):
                if (line := _parsed(text.lstrip(b"\0"))) is not None:  # zeros: a rank that has not written yet
                    found[line.rank] = line
    return [found[rank] for rank in sorted(found)]


@final
class _Writer(threading.Thread):
    """Renews the line of a rank. A file system that fails costs one warning and this rank's line, never the run."""

    def __init__(self, folder: Path, here: Place, heartbeat: Heartbeat) -> None:
        super().__init__(name="rank status", daemon=True)
        self._run, self._here, self._heartbeat = RunFolder(folder), here, heartbeat
        self._host = socket.gethostname()
        self._over = threading.Event()
        self._file = -1
        self._failed = False

    def run(self) -> None:
        """Write until the end, and once more then."""
        while not self._over.wait(RENEW_S if self._file >= 0 else RENEW_S / 10):
            self._write()
        self._write()
        if self._file >= 0:
            os.close(self._file)

    def close(self) -> None:
        """Write the last line, and end."""
        self._over.set()
        self.join(_CLOSE_S)

    def _write(self) -> None:
        try:
            if self._file < 0:
                if not self._run.run_file.exists():  # not a run folder yet: nothing is left where a run does not begin
                    return
                make_inside(self._run.ranks)
                self._file = open_own(self._run.ranks / f"from-{self._here.rank - self._here.local_rank}.jsonl")
            os.pwrite(self._file, self._line(), LINE * self._here.local_rank)
        except Exception as e:  # noqa: BLE001  watching must not end a run
            if not self._failed:
                self._failed = True
                say(f"warn   `widebatch top` does not see rank {self._here.rank}: {e}; training continues")

    def _line(self) -> bytes:
        beat, window = self._heartbeat.now, self._heartbeat.window
        line = RankLine(
            rank=self._here.rank,
            host=self._host[:64],
            pid=os.getpid(),
            time=round(time.time(), 2),
            phase=beat.phase,
            step=beat.step,
            still_s=round(time.monotonic() - beat.moved_s, 2),
            window={} if window is None else {name: _rounded(value) for name, value in asdict(window).items()},
            status=beat.status,
            text="",
        )
        found = asdict(line)
        room = LINE - 1 - len(json.dumps(found))
        text = beat.text.encode("ascii", "replace").decode().replace("\n", " ")
        found["text"] = text[: max(room // 2, 0)]  # JSON may need two characters for one
        return json.dumps(found).encode().ljust(LINE - 1) + b"\n"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _parsed(text: bytes) -> RankLine | None:
    """A line, None for anything else, such as one that was read while it was written."""
    try:
        found: dict[str, Any] = json.loads(text)
        window = {str(name): None if value is None else float(value) for name, value in found["window"].items()}
        return RankLine(
            rank=int(found["rank"]),
            host=str(found["host"]),
            pid=int(found["pid"]),
            time=float(found["time"]),
            phase=str(found["phase"]),
            step=int(found["step"]),
            still_s=float(found["still_s"]),
            window=window,
            status=None if found["status"] is None else int(found["status"]),
            text=str(found["text"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
