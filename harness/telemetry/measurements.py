"""What an engine measures: a row for each step, the same on every rank, and a row for each rank, over a window."""

import math
from dataclasses import dataclass, field

from harness.telemetry.histograms import Histogram
from harness.telemetry.node_metrics import NO_NODE, NodeRow


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
        """Mean loss over all counted items of the step; NaN if nothing was counted."""
        return self.loss_sum / self.count if self.count else float("nan")

    @property
    def bad(self) -> bool:
        """Whether loss or gradient was not finite. In fp16 a gradient may only have been scaled too high: that is not a problem."""
        if self.count == 0:
            return False
        return not math.isfinite(self.loss_sum) or (not self.applied and self.loss_scale == 1 and not self.spared)

    @property
    def empty(self) -> bool:
        """Whether nothing was counted on any rank, as if no token of a batch has a target: nothing moves, which is no error."""
        return self.count == 0

    @property
    def spared(self) -> bool:
        """Whether the guard left the step out for its gradient's norm."""
        return not self.applied and not self.empty and self.clip_factor == 0 and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class HostRow:
    """What a rank's host saw of a window, in seconds and GiB. `comm_wait_s` is NaN if the backend cannot tell.

    `busy_s` is the time in its own passes and steps, without waiting for data or other ranks. `computed` counts the samples that
    went through the model, those that only fill a pass up included; `troubles` how often fetching data failed. `save_due` and
    `save_failed` are flags: the clock says that it is time for a checkpoint; the last one could not be written. For `cpu_wait_s`
    the rank could have computed, and other processes had the CPU. `node` is of its node, on the rank that measures it.
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
    cpu_wait_s: float = 0.0
    node: NodeRow = NO_NODE


@dataclass(frozen=True)
class RanksRow:
    """All ranks' HostRows: of waits and memory the largest, of `comm_wait_s` the mean, of counts and flags the sum.

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
    cpu_wait_s: float = 0.0
    nodes: NodeRow = NO_NODE

    @property
    def longest_s(self) -> float:
        """What the window took at most, the same on all ranks."""
        wait_s = 0.0 if math.isnan(self.comm_wait_s) else self.comm_wait_s  # NaN: the wait is part of busy_s
        return self.busy_s + self.data_wait_s + wait_s


@dataclass(frozen=True)
class NoiseSums:
    """Sums over a window's full steps, for the noise scale; of the small batch the mean over ranks.

    `small_square`: squared norm of the small batch's summed gradient over the whole step's count of items; `share_square`: squared
    share of the step's items that were in the small batch; `big_square`: squared norm of the step's gradient. `steps` of 0 where
    the estimator has no sums of its own.

    `moment_square` is the squared norm of the optimizer's first moment m at the window's end. Where weight decay is coupled, m also
    holds decay x weights: `moment_decay` is m . (decay x weights), `decay_square` the squared norm of decay x weights.
    """

    small_square: float
    share_square: float
    big_square: float
    steps: float
    moment_square: float
    moment_decay: float
    decay_square: float


@dataclass(frozen=True)
class NormRow:
    """Squared norms of one group of parameters, over all shards, at a window's last step.

    `sampled_square` and `update_square` are of the elements that are followed through the step; `grad_square`, before clipping, is
    NaN if the backend keeps gradients to itself.
    """

    weight_square: float
    sampled_square: float
    update_square: float
    grad_square: float


@dataclass(frozen=True)
class Reading:
    """A window as all ranks measured it.

    `loss_max_rank` is the largest of the ranks' own mean losses, over steps of finite loss; `syncs` counts how often this rank's
    host waited for the device; `norms` go by the engine's labels. `laps_s` is what each step took on this rank, `own` its row.
    """

    steps: list[StepRow]
    loss_max_rank: float
    ranks: RanksRow
    syncs: int
    noise: NoiseSums
    norms: dict[str, NormRow]
    laps_s: list[float]
    own: HostRow
    histograms: dict[str, Histogram] = field(default_factory=dict)
