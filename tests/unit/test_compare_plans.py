"""Before anybody pays: what each number of GPUs does to the recipe, and how long it will take by speeds that were measured."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.measured_speeds import speeds_from
from harness.config.errors import UserError
from harness.plan.time_estimate import Speeds
from launch.cli import main
from tests.support.processes import ROOT

DIGITS = str(ROOT / "configs" / "digits.yaml")
GOLDEN = ROOT / "tests" / "golden"


@dataclass(frozen=True)
class Bench:
    """A file of measured speeds, as users give it."""

    path: Path

    def write(self, text: str) -> str:
        """Its path, with this text in it."""
        self.path.write_text(text)
        return str(self.path)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One for 1 and 4 GPUs."""
    bench = Bench(tmp_path / "bench.json")
    bench.write(json.dumps({"device": "A100"} | Speeds({1: 1510.2, 4: 1377.9}).to_json()))
    return bench


@pytest.mark.parametrize("command", [["plan"], ["launch", "--dry-run"]])
def test_several_worlds_are_a_table_of_plans(command: list[str], bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [command[0], DIGITS, "--gpus", "1,2,3,8", "--batch.total", "64", "--bench", str(bench.path), *command[1:]]
    assert main(argv) == 0
    assert capsys.readouterr().out == (GOLDEN / "worlds.txt").read_text()


def test_the_table_s_numbers_are_the_plans(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DIGITS, "--gpus", "8", "--json", "--bench", str(bench.path)]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main(["plan", DIGITS, "--gpus", "4,8", "--json", "--bench", str(bench.path)]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][1] == alone
    assert alone["at_best"]
    assert alone["hours"] == pytest.approx(43_110 / (8 * 1377.9) / 3600)
    assert alone["device_hours"] == pytest.approx(8 * alone["hours"])


def test_one_world_tells_its_hours_too(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DIGITS, "--gpus", "4", "--bench", str(bench.path)]) == 0
    assert "expected: 0.00217 hours of training, 0.00869 GPU hours" in capsys.readouterr().out


def test_the_speed_of_a_run_is_a_record_too(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"processes": 2}')
    rates = [None, 100.0, 900.0, 110.0]
    lines = [
        json.dumps({"event": "window", "step": 1, "samples": 8, "throughput/samples_per_s_per_device": rate}) for rate in rates
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(['{"event": "start"}', *lines, ""]))
    assert speeds_from(tmp_path).measured == {2: 110.0}


@given(st.dictionaries(st.integers(1, 4096), st.floats(1, 1e6), min_size=1, max_size=6), st.integers(1, 100_000))
def test_an_expected_speed_lies_between_those_measured_around_it(measured: dict[int, float], ranks: int) -> None:
    rate, at_best = Speeds(measured).rate(ranks)
    assert min(measured.values()) * (1 - 1e-12) <= rate <= max(measured.values()) * (1 + 1e-12)
    assert at_best == (ranks > max(measured))
    assert Speeds(measured).rate(min(measured))[0] == measured[min(measured)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measured": []}', '{"measured": [{"world_size": 2}]}'])
@pytest.mark.parametrize("ranks", ["0", "true", "1"])
@pytest.mark.parametrize("rate", ["0", "NaN", '"9"', "true"])
def test_what_is_no_record_is_refused_with_the_form_of_one(bench: Bench, text: str, ranks: str, rate: str) -> None:
    row = f'{{"measured": [{{"world_size": {ranks}, "samples_per_s_per_device": {rate}}}]}}'
    for wrong in (text, row):
        with pytest.raises(UserError, match="give a JSON file such as"):
            speeds_from(Path(bench.write(wrong)))


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["launch", DIGITS, "--gpus", "1,2"], "a run has one"),
        (["plan", DIGITS, "--gpus", "1,"], "is not a number of GPUs"),
        (["plan", DIGITS, "--gpus", "3,5", "--batch.total", "64"], "none of 3, 5"),
        (["plan", DIGITS, "--gpus", "8", "--bench", "nowhere.json"], "--bench"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
