"""On ranks no step asks the host for a value either, but those that count it: see tests/unit/test_host_reads.py."""

import json
import math
from typing import Any

import pytest

from tests.dist.workers.host_reads import RUNS
from tests.support.processes import run_ranks


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What rank 0 of two saw."""
    folder = tmp_path_factory.mktemp("reads")
    run_ranks(2, ["tests.dist.workers.host_reads", str(folder)], folder)
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("zero")])
def test_no_step_of_a_rank_reads_a_value(told: Any, name: str) -> None:
    found = told[name]
    assert found["reads"] == []
    assert (found["counted"] > 0) == (name == "ddp, powersgd"), "torch's own hook waits, for each bucket"


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero3"])
def test_of_deepspeed_s_steps_only_the_count_is_read_by_us(told: Any, name: str) -> None:
    ours = {line.split(": ", 2)[2] for line in told[name]["reads"] if "/harness/engine/zero.py" in line}
    assert ours <= {"count = float(sums[1])", "self._deepspeed.step()", "accumulate(self.deepspeed, total / self.expected, last)"}
    assert told[name]["counted"] == (0 if name == "zero0" else 10)


def test_powersgd_goes_on_after_a_step_that_was_not_finite(told: Any) -> None:
    """Its approximation error and its factors are NaN then, and would never be anything else."""
    applied, losses = told["poisoned"][:8], told["poisoned"][8:]
    assert applied == [1, 1, 1, 1, 0, 1, 1, 1]
    assert [math.isfinite(loss) for loss in losses] == [a == 1 for a in applied]
    assert losses[-1] < losses[3]
