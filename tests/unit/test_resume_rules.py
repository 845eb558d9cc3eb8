"""What may change between a checkpoint and the run that resumes from it, also where the checkpoint is of an earlier version."""

from typing import Any

import pytest

from harness.config.loader import decode
from harness.config.resume_rules import changes, saved_form

RUN: dict[str, Any] = {"batch": {"reference": 8, "total": 8}, "optim": {"lr": 0.1}, "schedule": {"samples": 64}}


def test_a_setting_that_an_earlier_version_did_not_have_was_at_its_default() -> None:
    before = saved_form(decode(RUN))
    del before["data"]
    assert changes(before, saved_form(decode(RUN))) == []
    (change,) = changes(before, saved_form(decode(RUN | {"data": {"timeout_s": 5}})))
    assert (change.setting, change.before, change.now, change.kind) == ("data.timeout_s", 120.0, 5, "free")


@pytest.mark.parametrize("setting", [{"order": "blocks"}, {"block": 10}, {"window": 3}])
def test_another_order_of_samples_is_refused(setting: dict[str, Any]) -> None:
    (change,) = changes(saved_form(decode(RUN)), saved_form(decode(RUN | {"data": setting})))
    assert change.kind == "refuse"
    assert change.reason.startswith("samples would be lost or repeated: ")
