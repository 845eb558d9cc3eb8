"""Whether a state from a checkpoint is possible: a digest shows that it is unchanged, not that it was right."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from harness.checkpoint.manifest import DamagedError, Digest
from harness.checkpoint.storage import Store
from harness.checkpoint.train_state import State
from harness.checkpoint.verified import ODD, check_file, read_document, read_manifest

MOST = 1 << 53
"""The largest value of any count: past it a float64 no longer counts by one."""


def read_state(store: Store, name: str, files: Mapping[str, Digest]) -> tuple[State, dict[str, Any]]:
    """(where the run stood, facts of the run). Raises DamagedError, or one of ODD."""
    document = read_document(store, name, files)
    return check_state(State.from_json(document["state"])), document["about"]


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
    for name in ("step", "samples", "skipped_steps", "nonfinite_steps", "restarts", "best_at", "discarded_samples"):
        yield name, 0 <= getattr(s, name) <= MOST
    for name in ("items", "scheduled", "trained_s", "lost_s", "rolled_back_s"):
        yield name, 0 <= getattr(s, name) < math.inf
    yield "step", s.step <= s.samples or s.samples == 0
    yield "growth", 1 <= s.growth <= MOST
    yield "growth_lr", 0 < s.growth_lr < math.inf
    yield "micro", s.micro is None or 1 <= s.micro <= MOST
    yield "began", s.began is None or math.isfinite(s.began)
    yield "best_then", s.best_then is None or math.isfinite(s.best_then)
    yield "plateau", 0 <= s.plateau.factor <= 1 and s.plateau.drops >= 0
    yield "noise", all(map(math.isfinite, (s.noise.square, s.noise.trace, s.noise.weight)))
    for name, spikes in (("losses", s.losses), ("norms", s.norms), ("health.ratios", s.health.ratios)):
        yield name, all(map(math.isfinite, spikes.memory)) and spikes.count >= 0 and spikes.running >= 0
    yield "health", all(map(math.isfinite, (*s.health.start, *s.health.recent, s.health.scatter, s.health.steady)))
    brake, guard = s.guard.brake, s.guard
    yield "guard.brake", 0 < brake.factor <= 1 and 0 <= brake.since <= MOST and 0 <= brake.over <= MOST
    yield "guard", min(guard.interventions, guard.rollbacks, guard.in_vain) >= 0
    yield "guard.gaps", all(0 <= start < stop <= MOST for start, stop in guard.gaps)
    yield "bad_samples", all(n >= 0 for n in (*s.bad_samples, *s.bad_valid))
