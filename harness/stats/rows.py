"""What an engine measures: a row for each step, the same on every rank, and a row for each rank, over a window."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepRow:
    """One optimizer step as measured, the same on every rank.

    `loss_sum` and `count` are over all ranks; `grad_norm` is of the mean loss, before clipping; `clip_factor` <= 1 is what clipping
    multiplied it by, 0 where the guard left the step out; `applied` says whether the weights moved; `stop` how many ranks ask to
    stop; `loss_scale` is fp16's.
    """

    loss_sum: float
    count: float
    stop: float
    grad_norm: float
    clip_factor: float
    applied: float
    loss_scale: float

    @property
    def loss(self) -> float:
        """Mean loss over all counted items of the step; NaN where nothing was counted."""
        return self.loss_sum / self.count if self.count else float("nan")

    @property
    def bad(self) -> bool:
        """Whether loss or gradient was not finite. In fp16 a gradient may only have been scaled too high: that is no trouble."""
        finite = math.isfinite(self.loss_sum) and self.count > 0
        return not finite or (not self.applied and self.loss_scale == 1 and not self.spared)

    @property
    def spared(self) -> bool:
        """Whether the guard left the step out for its gradient's norm."""
        return not self.applied and self.clip_factor == 0 and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class HostRow:
    """What a rank's host saw of a window, in seconds and GiB. `comm_wait_s` is NaN where the backend cannot tell.

    `busy_s` is the time in its own passes and steps, without waiting for data or other ranks. `computed` counts the samples that
    went through the model, those that only fill a pass up included; `troubles` how often fetching data failed. `save_due` and
    `save_failed` are flags: the clock says that it is time for a checkpoint; the last one could not be written.
    """

    data_wait_s: float
    comm_wait_s: float
    busy_s: float
    host_rss_gib: float
    gpu_allocated_gib: float
    gpu_reserved_gib: float
    alloc_retries: float
    ooms: float
    computed: float
    troubles: float
    save_due: float = 0.0
    save_failed: float = 0.0


@dataclass(frozen=True)
class RanksRow:
    """All ranks' HostRows: of `data_wait_s` and memory the largest, of `comm_wait_s` the mean, of counts and flags the sum.

    `busy_s` is that of the `slowest` rank, `others_busy_s` the mean of the others'; equal for a rank alone.
    """

    data_wait_s: float
    comm_wait_s: float
    busy_s: float
    others_busy_s: float
    slowest: int
    host_rss_gib: float
    gpu_allocated_gib: float
    gpu_reserved_gib: float
    alloc_retries: float
    ooms: float
    computed: float
    troubles: float
    saves_due: float = 0.0
    saves_failed: float = 0.0


@dataclass(frozen=True)
class NoiseSums:
    """Squared gradient norms of a window's full steps: at the small batch (mean over ranks and steps) and at the whole one.

    `steps` of 0 where the estimator has no sums of its own. `moment_square` is the squared norm of the optimizer's first moment.
    """

    small_square: float
    big_square: float
    steps: float
    moment_square: float


@dataclass(frozen=True)
class NormRow:
    """Squared norms of one group of parameters, over all shards, at a window's last step.

    `sampled_square` and `update_square` are of the elements that are followed through the step; `grad_square`, before clipping, is
    NaN where the backend keeps gradients to itself.
    """

    weight_square: float
    sampled_square: float
    update_square: float
    grad_square: float


@dataclass(frozen=True)
class Reading:
    """A window as all ranks measured it.

    `loss_max_rank` is the largest of the ranks' own mean losses, NaN where one is; `syncs` counts how often this rank's host waited
    for the device; `norms` go by the engine's labels.
    """

    steps: list[StepRow]
    loss_max_rank: float
    ranks: RanksRow
    syncs: int
    noise: NoiseSums
    norms: dict[str, NormRow]
    laps_s: list[float]
