"""Whether a state from a checkpoint is possible: a digest shows that it is unchanged, not that it was right."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.checkpoint.manifest import DamagedError, Digest, place_of
from harness.checkpoint.storage import Store
from harness.checkpoint.train_state import State
from harness.checkpoint.verified import ODD, check_file, read_document, read_manifest
from harness.plan.guard_policy import GuardState
from harness.telemetry.spikes import MEMORY

ESTIMATORS = ("", "passes", "ranks", "moments", "none")
"""Of the noise scale, see harness/engine/interface.py; none in checkpoints of earlier versions."""
LINEAGE = re.compile(r"[0-9a-f]{0,64}")
LONGEST_S = 1e12
"""Seconds that a run may have trained, or that its begin may lie after 1970."""
FARTHEST = 1e12
"""What a grown batch may multiply or divide lr by."""
MOST_METRICS = 10_000
MOST = 1 << 53
"""The largest value of any count: past it a float64 no longer counts by one."""


def read_state(store: Store, name: str, files: Mapping[str, Digest]) -> tuple[State, dict[str, Any]]:
    """(where the run stood, facts of the run). Raises DamagedError, or one of ODD."""
    document = read_document(store, name, files)
    state = check_state(State.from_json(document["state"]))
    if (place_of(name) or (0, 0))[0] != state.samples:
        raise DamagedError(f"its state is at {state.samples:,} samples, which is not its name's place")
    return state, document["about"]


def check_checkpoint(store: Store, name: str) -> None:
    """Raises DamagedError unless all of a checkpoint is as it was written."""
    try:
        files = read_manifest(store, name)
        for file, digest in files.items():
            check_file(store, name, file, digest)
        read_state(store, name, files)
    except ODD as e:
        raise DamagedError(f"{type(e).__name__}: {e}") from e


def check_state(state: State) -> State:
    """Returns `state` if it is possible. Raises ValueError, which names the first field that is out of its bounds."""
    for field, fine in _checks(state):
        if not fine:
            raise ValueError(f"its state is impossible: {field}")
    return state


def _checks(s: State) -> Iterator[tuple[str, bool]]:
    """(field, whether its value is possible)."""
    for name in ("step", "samples", "restarts", "discarded_samples"):
        yield name, 0 <= getattr(s, name) <= MOST
    trained = s.samples + s.discarded_samples  # a step takes one at least
    for name in ("skipped_steps", "nonfinite_steps", "empty_steps", "best_at"):
        yield name, 0 <= getattr(s, name) <= trained
    yield "items", 0 <= s.items < math.inf
    for name, most in (("scheduled", MOST), ("trained_s", LONGEST_S), ("lost_s", LONGEST_S), ("rolled_back_s", LONGEST_S)):
        yield name, 0 <= getattr(s, name) <= most
    yield "step", s.step <= s.samples and (s.step > 0 or s.samples == 0)
    yield "growth", 1 <= s.growth <= MOST
    yield "growth_lr", 1 / FARTHEST <= s.growth_lr <= FARTHEST
    yield "micro", s.micro is None or 1 <= s.micro <= MOST
    yield "began", s.began is None or 0 <= s.began <= LONGEST_S
    yield "best_then", s.best_then is None or math.isfinite(s.best_then)
    yield "noise_by", s.noise_by in ESTIMATORS
    yield "lineage", LINEAGE.fullmatch(s.lineage) is not None
    yield "bad_samples", all(n >= 0 for n in (*s.bad_samples, *s.bad_valid))
    yield from _measured(s)
    yield from _guarded(s.guard)


def _measured(s: State) -> Iterator[tuple[str, bool]]:
    """The same of what was measured."""
    yield "plateau", 0 <= s.plateau.factor <= 1 and s.plateau.drops >= 0
    yield "noise", all(map(math.isfinite, (s.noise.square, s.noise.trace, s.noise.weight)))
    for name, spikes in (("losses", s.losses), ("norms", s.norms), ("health.ratios", s.health.ratios)):
        yield (
            name,
            len(spikes.memory) <= MEMORY and all(map(math.isfinite, spikes.memory)) and min(spikes.count, spikes.running) >= 0,
        )
    yield "health", all(map(math.isfinite, (*s.health.start, *s.health.recent, s.health.scatter, s.health.steady)))
    yield "best", len(s.best) <= MOST_METRICS
    yield "last", len(s.last) <= MOST_METRICS


def _guarded(guard: GuardState) -> Iterator[tuple[str, bool]]:
    """The same of the guard."""
    brake = guard.brake
    yield "guard.brake", 0 < brake.factor <= 1 and 0 <= brake.since <= MOST and 0 <= brake.over <= MOST
    yield "guard", 0 <= guard.rollbacks <= guard.interventions <= MOST and 0 <= guard.in_vain <= MOST
    ordered = list(guard.gaps) == sorted(guard.gaps) and len(guard.gaps) <= guard.rollbacks
    yield "guard.gaps", ordered and all(0 <= start < stop <= MOST for start, stop in guard.gaps)
