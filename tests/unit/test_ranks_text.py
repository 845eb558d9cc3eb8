"""The view of all ranks: what is shown of them, at which width, and which come first."""

import json
from pathlib import Path

import pytest

from harness.config.run_folder import RunFolder
from harness.supervision.rank_status import LINE, RankLine, read_ranks
from launch.report.ranks_text import Standing, ranks_text

NOW = 1_800_000_000.0
RUN = Standing(
    "runs/a",
    {"total_steps": 900, "total_samples": 90_000},
    {"step": 120, "train/loss": 0.5, "throughput/samples_per_s": 1000.0, "system/cpu_pct": 41.0, "system/gpu_power_w": None},
    {"event": "step", "step": 121, "samples": 30_000},
)


def rank(
    number: int, *, busy: float = 5.0, age: float = 0.4, status: int | None = None, text: str = "", host: str = "n0"
) -> RankLine:
    """A rank of a step of 10 ms."""
    window: dict[str, float | None] = {
        "step_ms": 10.0,
        "busy_ms": busy,
        "data_wait_pct": 1.0,
        "comm_wait_pct": 30.0,
        "host_rss_gib": 3.2,
        "gpu_allocated_gib": 70.5,
    }
    return RankLine(number, host, 7, NOW - age, "train", 121, 0.01, window, status, text)


def row(lines: list[str], number: int) -> str:
    """The line of a rank."""
    return next(line for line in lines if line.split()[0] == str(number))


@pytest.mark.parametrize("width", [80, 140])
def test_every_line_fits_and_shows_what_matters_most(width: int) -> None:
    lines = ranks_text(RUN, [rank(n, host=f"node-{n}.cluster") for n in range(4)], NOW, width, None)
    assert max(map(len, lines)) <= width
    assert lines[1] == "step 121 of 900  loss 0.5  1,000 samples/s  about 1 min 00 s left"
    assert lines[2] == "nodes: CPU 41 %"
    shown = [name for name in ("step ms", "own ms", "wait %", "host GiB", "heartbeat", "host ", "GPU GiB") if name in lines[3]]
    assert {"step ms", "own ms", "heartbeat"} <= set(shown)
    assert ("node-3" in row(lines, 3)) == (width == 140)


def test_slow_silent_and_failed_ranks_are_marked() -> None:
    ranks = [rank(0), rank(1, busy=9.0), rank(2, age=35.0), rank(3, status=1, text="ValueError: x"), rank(4, status=0)]
    lines = ranks_text(RUN, ranks, NOW, 140, None)
    notes = [row(lines, n).split("ago")[-1].strip() for n in range(5)]
    assert notes == ["", "slow", "silent", "exit 1 ValueError: x", "ended"]
    assert "35 s ago" in row(lines, 2)


def test_where_not_all_have_room_those_that_need_a_look_stay() -> None:
    ranks = [rank(n, age=60.0 if n == 900 else 0.2) for n in range(1024)]
    lines = ranks_text(RUN, ranks, NOW, 100, 20)
    assert len(lines) <= 20
    assert "silent" in row(lines, 900)
    assert lines[-1] == "and 1,010 more ranks"


def test_a_name_cannot_move_the_cursor() -> None:
    lines = ranks_text(RUN, [rank(0), rank(1, host="\x1b[2J\nx", status=1, text="\x1b]0;t\x07")], NOW, 140, None)
    assert not any("\x1b" in line or "\n" in line for line in lines)


def test_a_run_whose_ranks_have_said_nothing_says_so() -> None:
    assert "no rank has said anything yet" in ranks_text(RUN, [], NOW, 80, None)[-1]


@pytest.mark.parametrize(
    "bad", [b"", b"\0" * LINE, b"{", b"[]", b"null", b'{"rank": 0}', b"[" * 100_000, b'{"rank": "x", "window": {}}', b"\xff\xfe"]
)
def test_what_is_no_line_of_a_rank_is_passed_over(bad: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).ranks
    folder.mkdir()
    good = json.dumps(vars(rank(5))).encode().ljust(LINE - 1) + b"\n"
    (folder / "from-0.jsonl").write_bytes(bad + b"\n" + good)
    assert [r.rank for r in read_ranks(tmp_path)] == [5]


def test_a_rank_that_has_not_written_yet_does_not_hide_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).ranks
    folder.mkdir()
    (folder / "from-0.jsonl").write_bytes(b"\0" * LINE + json.dumps(vars(rank(1))).encode())
    assert [r.rank for r in read_ranks(tmp_path)] == [1]
