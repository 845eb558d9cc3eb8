"""Journals: no bytes in the file can fail a reader, and what was cut by a kill swallows nothing that comes after it."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis import journal_lines
from harness.analysis.compare_runs import comparison
from harness.analysis.journal_lines import bounded_lines, number, parse, read
from harness.analysis.journal_reader import read_story
from harness.analysis.journal_tail import began, last_window, reports, starts
from harness.analysis.loss_verdict import verdict
from harness.analysis.measured_speeds import speeds_from
from harness.analysis.run_outcome import outcome
from harness.analysis.scaling_efficiency import ended_windows, speed
from harness.config.errors import UserError
from harness.telemetry.events import Ended, Noticed
from harness.training.resume import fresh_state
from harness.watch.journal_writer import Journal
from launch.report.report import main as report
from tests.support.journals import start, steps
from tests.support.processes import ROOT, environ

HUGE = "1" * 400
ODD = [
    "null", "5", "[1]", "{}", '"text"', "NaN", "-Infinity", "", " ", "{", '{"event": "step", "st', "\\", "\x00" * 9, "\ufeff{}",
    '{"event": "window"}', '{"event": "start"}', '{"event": "end"}', '{"event": "eval"}', '{"event": null}', '{"event": ["start"]}',
    HUGE, f'{{"event": "window", "step": {HUGE}, "samples": 1}}',
    f'{{"event": "window", "step": 1, "samples": 1, "train/loss": {HUGE}}}',
    '{"event": "window", "step": 1, "samples": 1, "train/loss": 1e999}', '{"event": "step", "step": -1, "samples": -5}',
    '{"event": "window", "step": true, "samples": 1}', '{"event": "window", "step": 1.5, "samples": "2"}',
    '{"event": "window", "step": 1, "samples": 1, "train/loss": {"a": []}, "progress/train_s": "x", "reliability/restarts": "m"}',
    '{"event": "window", "step": 1, "samples": 1, "train/lr": "nan", "batch/noise_scale_samples": [1], "reliability/lost_s": {}}',
    '{"event": "start", "step": 0, "samples": 0, "plan": 5, "config": "x", "parameters": null, "began": "yesterday"}',
    '{"event": "start", "step": 0, "samples": 0, "plan": {"sources": 3, "warnings": 7, "lr": "x", "global_batch": 0}}',
    '{"event": "notice", "step": 0, "samples": 0, "code": {"a": 1}, "message": ["x"]}',
    '{"event": "notice", "step": 0, "samples": 0, "code": "\\ud800", "message": "\\ud83d"}',
    '{"event": "checkpoint", "step": 0, "samples": 0, "seconds": "long", "bytes": null}',
    '{"event": "eval", "step": 0, "samples": 0, "eval/loss": {}, "best": "yes"}',
    '{"event": "end", "step": 0, "samples": 0, "reason": 7, "message": {}}',
    '{"event": "shown", "step": 0, "samples": 0, "rows": 5}',
    "[" * 100_000, '{"event":' * 5_000, '{"event": "start", "step": 0, "samples": 0, "plan": ' + "[" * 900 + "]" * 900 + "}",
]  # fmt: skip
"""Lines that are no events, or events whose values are of another kind than they should be."""


def all_readers(folder: Path) -> None:
    """Everything in the product that reads a journal, over this run folder's."""
    journal = folder / "events.jsonl"
    list(read(journal))
    began(journal)
    starts(journal)
    last_window(journal)
    verdict(reports(journal), reports(journal))
    outcome(journal, cut=True)
    speed("weak", 1, 8, ended_windows(journal) or [])
    assert fresh_state(folder).step == 0
    with journal.open("rb") as lines:
        story = read_story("run", lines)
    if story is not None:
        comparison([story, story])
        assert report([str(folder), "--json"]) == 0
        assert report([str(folder), str(folder), "--text"]) == 0
        assert report([str(folder), str(folder), "--out", str(folder / "page.html")]) == 0
    (folder / "plan.json").write_text('{"processes": 2}')
    try:
        speeds_from(folder)
    except UserError as e:
        assert e.setting == "--bench"  # noqa: PT017  a journal without rates is one


@pytest.mark.parametrize("odd", ODD, ids=lambda line: line[:40])
def test_one_odd_line_fails_no_reader_and_costs_only_itself(odd: str, tmp_path: Path) -> None:
    good = [json.dumps(line).encode() for line in (start(), *steps(1, 20, 1.0))]
    for at in (0, 1, len(good)):
        lines = [*good[:at], odd.encode("utf-8", "surrogatepass"), *good[at:]]
        (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        all_readers(tmp_path)
        found = [line for line in read(tmp_path / "events.jsonl") if line["event"] == "window" and line["samples"] > 1]
        assert [line["samples"] for line in found] == [100, 200]


@settings(max_examples=150)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.lists(st.sampled_from(ODD), max_size=4).map(lambda o: "\n".join(o).encode("utf-8", "surrogatepass")),
    )
)
def test_any_bytes_give_events_or_nothing(data: bytes) -> None:
    for line in parse(data.split(b"\n")):
        assert isinstance(line["event"], str)
        assert 0 <= line["step"] <= journal_lines.MOST
        assert 0 <= line["samples"] <= journal_lines.MOST
        assert all(isinstance(number(value), float) for value in line.values())


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
KINDS = ["start", "step", "window", "eval", "notice", "checkpoint", "shown", "end", "other"]
KEYS = [
    "plan", "config", "parameters", "device", "estimator", "began", "train/loss", "train/lr", "train/grad_norm", "progress/train_s",
    "progress/trained_s", "throughput/data_wait_pct", "throughput/comm_wait_pct", "throughput/samples_per_s", "pause/eval_s",
    "batch/noise_scale_samples", "batch/global_samples", "reliability/restarts", "reliability/lost_s", "eval/loss", "best", "code",
    "message", "seconds", "bytes", "reason", "memory/host_rss_gib", "throughput/samples_per_s_per_device",
]  # fmt: skip
EVENT = st.fixed_dictionaries({"event": st.sampled_from(KINDS)}, optional=dict.fromkeys(KEYS, JSON))


def test_any_values_in_known_events_fail_no_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Events of every kind with values of any kind under the names that readers look for."""

    @settings(max_examples=60)
    @given(
        st.lists(
            st.fixed_dictionaries({"event": st.sampled_from(KINDS)}, optional=dict.fromkeys(KEYS, JSON)), min_size=1, max_size=6
        )
    )
    def holds(events: list[dict[str, Any]]) -> None:
        lines = [json.dumps(e | {"step": n, "samples": n * 8}, allow_nan=True) for n, e in enumerate(events)]
        (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
        all_readers(tmp_path)

    holds()
    capsys.readouterr()


def test_a_line_that_was_cut_swallows_nothing_of_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "notice", "step": 1, "samples": 8, "code": "a", "message": "b"}\n{"event": "step", "ste')
    for count in (1, 2):
        journal = Journal(path)
        journal(Noticed(2, 16, "code", f"name \udcff of an odd file {count}"))
        journal.close()
    found = list(read(path))
    assert [line.get("message", "")[-1] for line in found] == ["b", "1", "2"]
    assert path.read_bytes().count(b"\n") == 4, "a line that is whole is followed by no empty one"


def test_a_line_of_any_length_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_lines, "LONGEST", 64)
    path = tmp_path / "events.jsonl"
    ended = json.dumps({"event": "end", "step": 1, "samples": 8}).encode()
    for length in (63, 64, 65, 127, 128, 129, 1000):
        path.write_bytes(b"x" * length + b"\n" + ended + b"\n" + b"y" * length)
        assert [line["event"] for line in read(path)] == ["end"]
        with path.open("rb") as file:
            assert max(map(len, bounded_lines(file))) <= 64


def test_numbers_are_what_they_were_written_as() -> None:
    assert number("nan") != number("nan")
    assert (number("inf"), number("-inf"), number(True), number(3)) == (math.inf, -math.inf, 1.0, 3.0)
    odd: list[Any] = [None, "x", [], {}, 10**400, Ended]
    assert all(math.isnan(number(value)) for value in odd)


DIGITS = str(ROOT / "configs" / "digits.yaml")
PEAK = """
import sys
from pathlib import Path
from launch.cli import main
main(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize(
    "command", [["report", "RUN", "--text"], ["report", "RUN", "--json"], ["plan", DIGITS, "--gpus", "1", "--from", "RUN"]]
)
def test_what_reads_a_run_holds_no_line_of_any_length_in_memory(command: list[str], tmp_path: Path) -> None:
    """A journal that a disk has damaged: half a gigabyte of zeros in it, which take no disk here."""
    started = {"event": "start", "step": 0, "samples": 0, "plan": {}, "config": {}}
    noise = {"event": "window", "step": 1, "samples": 32, "batch/noise_scale_samples": 700.0}
    path = tmp_path / "events.jsonl"
    path.write_bytes(json.dumps(started).encode() + b"\n")
    with path.open("ab") as file:
        file.truncate(1 << 29)
        file.write(b"\n" + (json.dumps(noise).encode() + b"\n") * 50)
    argv = [str(tmp_path) if word == "RUN" else word for word in command]
    done = subprocess.run([sys.executable, "-c", PEAK, *argv], env=environ(), capture_output=True, text=True, check=False)
    assert int(done.stdout.splitlines()[-1].split()[1]) < 300_000, done.stderr
