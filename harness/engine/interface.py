"""One whole optimizer step, on any backend. Only this layer knows Accelerate and DeepSpeed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.plan.plan import Plan
from harness.supervision.heartbeat import Heartbeat
from harness.telemetry.measurements import Reading
from harness.telemetry.node_metrics import NO_NODE, NodeRow

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
"""Type of the weights and of the data, by `precision`; bf16 and fp16 are autocast over float32 weights."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
Estimator = Literal["passes", "ranks", "moments", "none"]
"""How the gradient noise scale is measured: by the gradient of a step's first pass, by each rank's own before reduction, by the
optimizer's first moment, or not at all."""


@dataclass(frozen=True)
class Limit:
    """The largest gradient norm of a step: a larger one is clipped to it or, with `skip`, the step changes nothing."""

    norm: float
    skip: bool


class StepTooLargeError(torch.OutOfMemoryError):
    """A step did not fit in memory and has changed nothing: it may be repeated in smaller passes."""


def unmeasured() -> NodeRow:
    """The row of a node that this rank does not measure."""
    return NO_NODE


class Engine(ABC):
    """A model, its optimizer and the ranks it is trained by."""

    plan: Plan
    device: torch.device
    dtype: torch.dtype
    rank: int
    processes: int
    estimator: Estimator
    optimizer: Optimizer
    heartbeat: Heartbeat
    """The heartbeat in which this rank reports progress."""
    node: Callable[[], NodeRow]
    """The newest sample of this rank's node, for the rank that measures it; a window takes it over."""
    base: Mapping[str, str]
    """Digests of the weights that are not trained, as model() made them, by name."""
    notes: list[tuple[str, str]]
    """(code, text) of each notice for the user that the loop has not reported yet."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The recipe's own model, to evaluate and to look at."""

    @abstractmethod
    def parameters(self, *, trained: bool = False) -> int:
        """Elements of all the model's parameters together, wherever they lie, or of those that are trained."""

    @abstractmethod
    def adopt(self, plan: Plan) -> None:
        """Use this plan from the next step on: the same world, another global batch or micro-batch."""

    @abstractmethod
    def step(self, micros: Sequence[Micro], lr: float, stop: bool, *, close: bool = False, limit: Limit | None = None) -> None:
        """One optimizer step over this rank's passes at rate `lr`. With a fused optimizer nothing is read back to the host.

        `close`: the last step of a window, in which norms of weights and updates are measured too. Raises StepTooLargeError, with
        everything as it was, where the step does not fit in memory; another out-of-memory error where weights may have moved
        already: that step must not be taken again.

        The gradient is the sum over all ranks divided by the global count of items (Goyal et al. 2017, remark 3). A step whose loss
        or gradient is not finite on any rank moves nothing on any rank. `stop` asks all ranks to stop.
        """

    def regroup(self, plan: Plan) -> None:
        """From here on the ranks are those of a new default process group, and the steps are of this plan for them.

        A step in which the old group failed is undone. To be called on all of them. Raises RuntimeError where weights may have
        moved in that step, and where this backend cannot do without a rank.
        """
        raise RuntimeError(f"backend {self.plan.backend} needs all of its ranks")

    @abstractmethod
    def begin(self) -> None:
        """Restart the window timer: what was done since the last reading is not part of the window."""

    @abstractmethod
    def lr_scales(self) -> list[float]:
        """The factor on lr of each parameter group."""

    @abstractmethod
    def read(self, data_wait_s: float = 0.0, troubles: int = 0, *, save_due: bool = False, save_failed: bool = False) -> Reading:
        """The steps since the last call: one reduction over ranks and one copy from device to host for a window.

        `data_wait_s`: seconds that this rank waited for its data in the window; `troubles`: how often its data made some. The flags
        are of checkpoints, see HostRow.
        """

    @abstractmethod
    def stop_asked(self) -> bool:
        """Whether any rank had been asked to stop when the last step began: the same on all ranks. Waits for the device."""

    @abstractmethod
    def sync_buffers(self) -> None:
        """Make buffers equal on all ranks, before evaluation or saving.

        What differs and is not whole numbers, such as BatchNorm's running statistics, becomes the mean over ranks; what is equal
        stays. For buffers other than BatchNorm's a notice is added to `notes`.
        """

    @abstractmethod
    def evaluated(self) -> AbstractContextManager[None]:
        """Inside the context the model has the weights that its optimizer uses for evaluation; afterwards exactly those that it
        trains."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Inside the context the model's weights are their running average. Only for a plan with `ema`."""

    @abstractmethod
    def reduce(self, sums: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""

    @abstractmethod
    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is up on any rank."""

    @abstractmethod
    def not_finite(self) -> str:
        """The name of a trained weight with numbers that are not finite in this rank's part; empty if all are finite."""

    @abstractmethod
    def pieces(self) -> list[TensorSlice]:
        """What this rank holds of weights and optimizer state; all ranks' pieces together are the whole, each element once.

        Names and whole shapes are the same on every backend and world: `model/NAME` and `optimizer/NAME/KEY`. The data are the
        live tensors: copy them before the next step.
        """

    @abstractmethod
    def load(self, source: SliceReader) -> None:
        """Take weights and optimizer state over; rates, betas and decay stay the plan's. Raises UserError if they do not fit."""


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast region of the config's precision, to enter as often as one likes; nothing for fp32 and fp64."""
    dtype = AUTOCAST.get(config.precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
