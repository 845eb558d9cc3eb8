"""The global batch and how it splits: global_batch = world_size x micro_batch x accumulate."""

from dataclasses import dataclass

from harness.config.errors import UserError
from harness.config.schema import BatchConfig
from harness.plan.token_units import marked, to_samples
from harness.plan.world import World

_SIZES = ("per_gpu", "total", "total_tokens", "steps")
"""The settings that say how large the batch is."""


@dataclass(frozen=True)
class Split:
    """Samples per optimizer step, and per rank and forward pass; with the reason of each."""

    global_batch: int
    micro_batch: int
    accumulate: int
    global_reason: str
    micro_reason: str


def split_batch(batch: BatchConfig, world: World, tokens: int | None = None) -> Split:
    """Split the requested batch over the world; `tokens` are those of a sample.

    Raises UserError, naming the nearest batches, where it does not divide.
    """
    given = {name: getattr(batch, name) for name in _SIZES if getattr(batch, name) not in (None, ())}
    if len(given) != 1:
        listed = " and ".join(f"batch.{name} {value}" for name, value in given.items())
        at = f"has {'both ' * (len(given) == 2)}{listed}" if given else "has neither batch.per_gpu nor batch.total"
        raise UserError("batch", at, "give exactly one: per_gpu grows with the GPUs, total stays")
    if batch.per_gpu is not None:
        share, reason = batch.per_gpu, f"batch.per_gpu {batch.per_gpu} x {world.size} ranks"
    else:
        total, reason = _total(batch, tokens)
        if total % world.size:
            raise _uneven(batch, total, world, tokens)
        share = total // world.size
    micro, micro_reason = _micro(batch, share)
    return Split(share * world.size, micro, share // micro, reason, micro_reason)


def _total(batch: BatchConfig, tokens: int | None) -> tuple[int, str]:
    """(samples of a batch that is the same on any world, the reason)."""
    if batch.total is not None:
        return batch.total, f"batch.total {batch.total}, the same on any world"
    if batch.steps:
        return marked("batch.steps", batch.steps[0][1], tokens), f"batch.steps: the first of {len(batch.steps)}"
    assert batch.total_tokens is not None  # noqa: S101  one of them is given
    samples = to_samples("batch.total_tokens", batch.total_tokens, tokens)
    whole = "" if samples * (tokens or 1) == batch.total_tokens else ", to the nearest sample"
    return samples, f"batch.total_tokens {batch.total_tokens:,} / {tokens:,} tokens a sample{whole}, the same on any world"


def _uneven(batch: BatchConfig, total: int, world: World, tokens: int | None) -> UserError:
    near = nearest_multiples(total, world.size)
    if batch.total_tokens is None:
        setting = "batch.total" if batch.total else "batch.steps"
        return UserError(setting, f"{total} does not split over {world.size} GPUs", f"nearest: {near}")
    at = f"{batch.total_tokens} tokens are {total} samples of {tokens}, which do not split over {world.size} GPUs"
    fits = ", ".join(str(int(samples) * (tokens or 1)) for samples in near.split(", "))
    return UserError("batch.total_tokens", at, f"nearest: {fits}")


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
