"""What watching a run costs beside its training, in calls, which no other load on the machine changes."""

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config.run_folder import RunFolder
from harness.engine.node_sampler import EVERY_S, _Host
from harness.plan.world import Place
from harness.supervision.heartbeat import Heartbeat
from harness.supervision.rank_status import RENEW_S, _Writer

MOST = 1000
"""Python calls a second that a rank may spend on being watched: about 0.1 ms, where ten thousand are a millisecond."""


def calls(act: Callable[[], Any]) -> float:
    """Python calls of `act`, after a first time."""
    act()
    profile = cProfile.Profile()
    profile.runcall(act)
    return float(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_a_rank_s_line_and_its_node_s_sample_cost_a_few_hundred_calls_a_second(tmp_path: Path) -> None:
    RunFolder(tmp_path).run_file.touch()
    line = _Writer(tmp_path, Place(0, 1, 0, 1), Heartbeat(None))
    assert calls(line._write) / RENEW_S + calls(_Host().sample) / EVERY_S < MOST
