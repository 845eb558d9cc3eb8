"""The segments of a run in W&B: where the next one's points begin, and which can go."""

from pathlib import Path

from harness.analysis.wandb_segments import drop_empty, points_so_far
from tests.support.journals import start, steps, write


def test_points_are_numbered_on_from_all_that_earlier_starts_can_have_logged(tmp_path: Path) -> None:
    more = [
        {"event": "eval", "step": 20, "samples": 200, "eval/loss": 1.0},
        {"event": "checkpoint", "step": 20, "samples": 200, "path": "a"},
        {"event": "examples", "step": 20, "samples": 200, "rows": []},
        {"event": "notice", "step": 20, "samples": 200, "code": "spike", "message": ""},
    ]
    told = [start(), *steps(1, 20, 1.0), *more, start(step=10, samples=100), *steps(11, 20, 1.0)]
    assert points_so_far(write(tmp_path, told) / "events.jsonl") == 2 + 3 + 1
    assert points_so_far(tmp_path / "none") == 0


def segment(folder: Path, name: str, size: int) -> Path:
    """A segment whose file has so many bytes."""
    made = folder / "wandb" / f"offline-run-{name}-abc"
    (made / "files").mkdir(parents=True)
    (made / "run-abc.wandb").write_bytes(b"x" * size)
    return made


def test_what_a_killed_start_left_empty_goes_and_nothing_else(tmp_path: Path) -> None:
    empty, begun, full = (segment(tmp_path, name, size) for name, size in (("1", 0), ("2", 7), ("3", 8)))
    outside = segment(tmp_path / "elsewhere", "4", 0)
    (tmp_path / "wandb" / "offline-run-4-abc").symlink_to(outside)
    drop_empty(tmp_path)
    assert [s.exists() for s in (empty, begun, full, outside / "run-abc.wandb")] == [False, False, True, True]
    drop_empty(tmp_path / "none")
