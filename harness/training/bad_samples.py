"""Samples that could not be fetched on any rank: agreed over all ranks, reported, and counted against guard.bad_samples."""

from collections.abc import Sequence
from dataclasses import replace

from harness.checkpoint.train_state import State
from harness.config.schema import GuardConfig
from harness.data.feed import Feed, Trouble
from harness.data.workers import named
from harness.distributed.process_group import gather
from harness.telemetry.events import Noticed

SHOWN = 5
"""For how many bad samples a notice gives the reason; of further ones it gives the ids."""


def meet(state: State, feed: Feed, at: tuple[int, int], *, valid: bool = False) -> tuple[State, list[Noticed]]:
    """(the state with the samples that any rank found bad, the notices at this step and sample).

    Must be called on all ranks together.
    """
    told = gather(feed.troubles)
    feed.troubles = []
    known = state.bad_valid if valid else state.bad_samples
    bad = {t.sample: t.text for troubles in told for t in troubles if t.sample is not None and t.sample not in known}
    feed.quarantine.update(bad)
    every = (*known, *sorted(bad))
    state = replace(state, bad_valid=every) if valid else replace(state, bad_samples=every)
    lost = [_lost(at, rank, t) for rank, troubles in enumerate(told) for t in troubles if t.sample is None]
    return state, [*lost, *([_left_out(at, bad, "validation" if valid else "training")] if bad else [])]


def take_up(state: State, feed: Feed, valid: Feed | None) -> None:
    """When a run resumes: samples that were found bad before are not read again."""
    feed.quarantine.update(state.bad_samples)
    if valid is not None:
        valid.quarantine.update(state.bad_valid)


def spent(state: State, guard: GuardConfig) -> str:
    """The reason to stop if too many samples are bad, else empty."""
    count = len(state.bad_samples) + len(state.bad_valid)
    if count <= guard.bad_samples:
        return ""
    ids = named(state.bad_samples or state.bad_valid)
    return (
        f"{count} samples cannot be read, more than guard.bad_samples {guard.bad_samples}: {ids}; look at the data, or allow more"
    )


def _lost(at: tuple[int, int], rank: int, trouble: Trouble) -> Noticed:
    return Noticed(*at, "data_worker", f"rank {rank}: {trouble.text}")


def _left_out(at: tuple[int, int], bad: dict[int, str], split: str) -> Noticed:
    some = "; ".join(f"{number} ({why})" for number, why in sorted(bad.items())[:SHOWN])
    rest: Sequence[int] = sorted(bad)[SHOWN:]
    more = f"; and {named(rest)}" if rest else ""
    return Noticed(*at, "bad_samples", f"{split} samples that cannot be read are left out: {some}{more}")
