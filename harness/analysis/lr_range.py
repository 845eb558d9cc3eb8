"""How high the learning rate may go: the judge of a short run, and the search by doubling, then by bisection. Pure."""

import math
from collections.abc import Mapping
from statistics import mean

from harness.analysis.run_outcome import Outcome

TROUBLES = ("divergence", "dead", "erratic", "nonfinite")
"""The guard's notices that make a rate count as unstable."""
SPIKE_SHARE = 0.02
"""Share of spikes among all steps from which a rate counts as unstable."""
TAIL = 0.2
"""Share of a run, from its end, over which its loss is averaged."""
BLOWN, KEPT = 1.5, 0.5
"""A window's loss above BLOWN times the first is a divergence, even if the loss recovers. At the end at least the share KEPT of the
loss's largest decrease must be left."""
PRECISION = 2**0.25
"""Ratio of the smallest unstable to the largest stable rate at which the search ends."""
MOST = 2.0**12


def tail_loss(o: Outcome) -> float | None:
    """Mean training loss of the windows in the last TAIL of the samples; None if the run has none."""
    found = [loss for samples, loss in o.losses if samples > (1 - TAIL) * o.samples]
    return mean(found) if found else None


def instability(o: Outcome) -> str:
    """Why a run was unstable, as text; empty if it was stable."""
    if o.reason == "guard":
        return f"stopped after {o.steps} steps: {o.message}"
    if o.nonfinite_steps:
        return f"{o.nonfinite_steps} steps were not finite"
    told = [code for code in TROUBLES if code in o.notices]
    if told:
        return f"the guard saw: {', '.join(told)}"
    if o.spikes > SPIKE_SHARE * o.steps:
        return f"{o.spikes} spikes in {o.steps} steps"
    loss = tail_loss(o)
    if loss is None or not math.isfinite(loss):
        return "its loss is not finite"
    first, highest, lowest = o.losses[0][1], max(x for _, x in o.losses), min(x for _, x in o.losses)
    if not highest <= BLOWN * abs(first):
        return f"its loss rose from {first:.4g} to {highest:.4g}"
    if first - loss < KEPT * (first - lowest):
        return f"its loss was at {lowest:.4g} and ended at {loss:.4g}"
    return ""


def next_factor(stable: Mapping[float, bool]) -> float | None:
    """The multiple of the reference lr to try next: 1, doubled while stable (halved while not), then bisected; None at the end."""
    good, bad = [f for f, held in stable.items() if held], [f for f, held in stable.items() if not held]
    if not stable:
        return 1.0
    if not bad:
        return 2 * max(good) if max(good) < MOST else None
    if not good:
        return min(bad) / 2 if min(bad) > 1 / MOST else None
    low, high = max(f for f in good if f < min(bad)) if any(f < min(bad) for f in good) else 0.0, min(bad)
    if low == 0.0:
        return high / 2 if high > 1 / MOST else None
    return math.sqrt(low * high) if high / low > PRECISION * 1.0001 else None
