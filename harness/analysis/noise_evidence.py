"""The noise scale that earlier runs measured, from their journals, for the next plan."""

from collections.abc import Sequence
from statistics import median

from harness.analysis.run_record import RunRecord
from harness.plan.evidence import Evidence


def evidence_of(stories: Sequence[RunRecord]) -> Evidence | None:
    """The median noise scale of the runs that did not die; None if no run measured one.

    The scale belongs to the weights and not to the batch, so runs at several batches measure the same.
    """
    found = [(s, s.noise_scale) for s in stories if not s.died and s.noise_scale is not None]
    if not found:
        return None
    told = ", ".join(f"{s.name} (estimator {s.estimator}, {len(s.high_noise)} windows at high lr)" for s, _ in found)
    return Evidence(noise_scale_samples=median(scale for _, scale in found if scale is not None), source=f"measured in {told}")


def nothing_known(s: RunRecord) -> str:
    """Why a run's journal gives no noise scale."""
    if s.died:
        return f"{s.name} died ({s.died}): its measurements are not used"
    hidden = f"only {len(s.high_noise)} of {s.high_windows} windows at high lr have a noise scale"
    return f"{s.name}: {hidden}: the noise hides the gradient at batch {s.plan.get('global_batch')}"
