"""widebatch bench: rows, efficiency and the record from journals; and the command itself on real processes, gone on with later."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.measured_speeds import speeds_from
from harness.analysis.scaling_efficiency import Speed, efficiencies, ended_windows, panels, remarks, speed, table, to_json
from harness.config.errors import UserError
from launch.lab import bench
from tests.support.journals import write
from tests.support.processes import ROOT


def window(rate: float | None, comm: float | None = 5.0, gpu: float = 0.0) -> dict[str, Any]:
    """A window of a run on two ranks."""
    return {
        "event": "window",
        "throughput/samples_per_s": rate,
        "throughput/samples_per_s_per_device": rate and rate / 2,
        "throughput/step_p50_ms": 10.0,
        "throughput/comm_wait_pct": comm,
        "throughput/data_wait_pct": 1.0,
        "memory/gpu_peak_allocated_gib": gpu,
        "memory/host_rss_gib": 0.5,
    }


def rows() -> list[Speed]:
    """Two worlds, weak and strong."""
    return [
        Speed("weak", 1, 32, 1000.0, 32.0, 0.0, 1.0, 0.5),
        Speed("weak", 4, 128, 900.0, 35.0, 8.0, None, 0.5),
        Speed("strong", 1, 128, 1100.0, 116.0, 0.0, 1.0, 0.5),
        Speed("strong", 4, 128, 900.0, 35.0, 8.0, 1.0, 0.5),
    ]


def test_a_row_is_the_median_of_the_windows_that_have_a_rate() -> None:
    found = speed("weak", 2, 64, [window(None), window(100.0), window(300.0, None), window(200.0)])
    assert found == Speed("weak", 2, 64, 100.0, 10.0, 5.0, 1.0, 0.5)
    assert speed("weak", 2, 64, [window(None)]) is None, "the first window alone says nothing"
    on_gpu = speed("weak", 2, 64, [window(10.0, gpu=3.0), window(10.0, gpu=4.0)])
    assert on_gpu is not None
    assert on_gpu.memory_gib == 4.0, "the largest, and the device's where there is one"


def test_efficiency_is_of_the_smallest_world_of_the_same_kind() -> None:
    found = efficiencies(rows())
    assert found["weak", 4] == pytest.approx(90.0)
    assert found["strong", 4] == pytest.approx(100 * 9 / 11)
    assert found["weak", 1] == found["strong", 1] == 100.0
    assert "81.8 %" in table(rows())
    assert remarks(rows()) == []
    first = rows()[0]
    fast = replace(first, world_size=2, samples_per_s_per_device=3.157 * first.samples_per_s_per_device)
    assert remarks([first, fast])[0].startswith(f"above 100 % ({first.kind} 2 ranks): a device was faster there")
    assert [c.label for c in panels(rows())[0].curves] == ["weak", "weak, ideal", "strong", "strong, ideal"]


def test_the_record_is_what_hours_are_computed_from(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(to_json(rows(), {"device": "cpu"})))
    assert speeds_from(path).measured == {1: 1000.0, 4: 900.0}
    assert json.loads(path.read_text())["baseline"] == 1000.0


def test_a_journal_without_an_end_is_a_run_that_is_not_done(tmp_path: Path) -> None:
    place = {"step": 1, "samples": 8}
    lines: list[dict[str, Any]] = [
        {"event": "step"} | place,
        window(1.0) | place,
        {"event": "end", "reason": "stop_after_steps"} | place,
    ]

    def found(lines: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        return ended_windows(write(tmp_path, lines) / "events.jsonl")

    assert found(lines[:2]) is None
    assert found(lines) == [lines[1]]
    assert found([*lines[:2], lines[2] | {"reason": "stop_requested"}]) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpus", "0", "--procs", "1,x"], "--procs: is '1,x'"),
        (["--gpus", "0", "--procs", "0,1"], "--procs: is '0,1'"),
        (["--gpus", "999"], "--gpus: 999 asked for"),
        (["--gpus", "0", "--steps", "2"], "--steps: is 2"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(flags: list[str], said: str) -> None:
    with pytest.raises(UserError) as e:
        bench.main([str(ROOT / "configs" / "digits.yaml"), *flags])
    assert said in str(e.value)


def test_worlds_are_measured_once_and_more_of_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    argv = [str(ROOT / "configs" / "digits.yaml"), "--gpus", "0", "--steps", "12", "--out", str(tmp_path / "out"), "--procs"]
    assert bench.main([*argv, "1"]) == 0
    assert bench.main([*argv, "1,2"]) == 0
    assert capsys.readouterr().out.count("weak-1:") == 1, "what is done is kept"
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["world_size"] for row in record["measured"]] == [1, 2]
    assert [row["global_batch"] for row in record["measured"]] == [32, 64]
    assert [row["global_batch"] for row in record["strong"]] == [64, 64]
    assert record["measured"][1] | {"efficiency_pct": 0} == record["strong"][1] | {"efficiency_pct": 0}, "one run for both"
    assert all(row["samples_per_s_per_device"] > 0 for row in record["measured"] + record["strong"])
    with pytest.raises(UserError, match="other settings"):
        bench.main([*argv, "1", "--optim.lr", "0.5"])
