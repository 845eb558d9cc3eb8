"""The global batch and how it splits: global_batch = world_size x micro_batch x accumulate."""

from dataclasses import dataclass

from harness.plan.config import BatchConfig
from harness.plan.errors import UserError
from harness.plan.world import World


@dataclass(frozen=True)
class Split:
    """Samples per optimizer step, and per rank and forward pass; with the reason of each."""

    global_batch: int
    micro_batch: int
    accumulate: int
    global_reason: str
    micro_reason: str


def split_batch(batch: BatchConfig, world: World) -> Split:
    """Split the wished batch over the world. Raises UserError, naming the nearest batches, where it does not divide."""
    if (batch.per_gpu is None) == (batch.total is None):
        both = f"both batch.per_gpu {batch.per_gpu} and batch.total {batch.total}"
        given = both if batch.total else "neither batch.per_gpu nor batch.total"
        raise UserError("batch", f"has {given}", "give exactly one: per_gpu grows with the GPUs, total stays")
    if batch.total is not None:
        if batch.total % world.size:
            near = nearest_multiples(batch.total, world.size)
            raise UserError("batch.total", f"{batch.total} does not split over {world.size} GPUs", f"nearest: {near}")
        share = batch.total // world.size
        reason = f"batch.total {batch.total}, the same on any world"
    else:
        assert batch.per_gpu is not None  # noqa: S101  narrowed by the first check
        share = batch.per_gpu
        reason = f"batch.per_gpu {share} x {world.size} ranks"
    micro, micro_reason = _micro(batch, share)
    return Split(share * world.size, micro, share // micro, reason, micro_reason)


def nearest_multiples(value: int, of: int) -> str:
    """The multiples of `of` around `value`, as text: "96, 104"."""
    below = value // of * of
    return f"{below}, {below + of}" if below else f"{of}"


def _micro(batch: BatchConfig, share: int) -> tuple[int, str]:
    if batch.micro == "auto":
        return share, "batch.micro auto: the rank's whole share in one pass"
    if batch.micro >= share:
        return share, f"the rank's share {share} fits in batch.micro {batch.micro}"
    if share % batch.micro:
        divisors = [d for d in range(1, share + 1) if share % d == 0]
        below = max(d for d in divisors if d < batch.micro)
        above = min(d for d in divisors if d > batch.micro)
        at = f"{batch.micro} does not divide a GPU's share of {share} samples"
        raise UserError("batch.micro", at, f"nearest: {below}, {above}")
    return batch.micro, f"batch.micro {batch.micro} divides the rank's share of {share}"


def resplit(share: int, micro: int) -> tuple[int, int]:
    """(micro_batch, accumulate) for a rank's share in passes of at most `micro` samples, the largest that divides it."""
    fits = next(m for m in range(min(micro, share), 0, -1) if share % m == 0)
    return fits, share // fits
