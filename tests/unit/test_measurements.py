"""Which steps count as trouble, and which only looked for fp16's scale."""

import math

import pytest

from harness.telemetry.measurements import StepRow


@pytest.mark.parametrize(
    ("loss", "count", "applied", "scale", "bad"),
    [
        (1.0, 8, 1, 1, False),
        (math.nan, 8, 0, 1, True),
        (math.inf, 8, 0, 65536, True),
        (1.0, 8, 0, 1, True),
        (1.0, 8, 0, 65536, False),
        (1.0, 8, 1, 65536, False),
        (0.0, 0, 0, 1, False),
    ],
)
def test_a_step_is_bad_unless_only_fp16_s_scale_was_too_high(
    loss: float, count: float, applied: float, scale: float, bad: bool
) -> None:
    assert StepRow(loss, count, 0, 1.0, 1.0, applied, scale).bad is bad
