"""A model that is ready to train on this rank, with all that belongs to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.engine.frozen import Frozen
from harness.engine.layer_histograms import LayerHistograms
from harness.engine.optimizer_state import OwnNumbers
from harness.engine.param_names import layer_label, persistent
from harness.engine.process import Process
from harness.engine.trained import Trained, Unused
from harness.engine.window_meters import Meters
from harness.plan.plan import Plan

if TYPE_CHECKING:
    from harness.engine.ema import Average


@final
@dataclass(frozen=True)
class ModelSetup:
    """`model` is the recipe's own; `average` is that of its weights, where the plan asks for one; `histograms` where the run file
    does."""

    model: nn.Module
    optimizer: Optimizer
    trained: Trained
    unused: Unused
    own: OwnNumbers
    frozen: Frozen
    average: "Average | None"
    meters: Meters
    histograms: LayerHistograms | None


def set_up(
    process: Process,
    plan: Plan,
    model: nn.Module,
    optimizer: Optimizer,
    digests: Mapping[str, str],
    local: Callable[[Tensor], Tensor],
) -> ModelSetup:
    """Call it once the model is on its device and sharded.

    `digests` are of weights that may be frozen; `local`: see Layout.local.
    """
    _check_norms(model, process.device)
    trained = Trained(model)
    own, frozen = OwnNumbers(optimizer), Frozen(model, trained, digests, local)
    labels = norm_labels(process, trained, optimizer)
    meters = Meters(process.device, process.rank, process.ranks, labels)
    histograms = LayerHistograms([layer_label(n) for n in trained.names]) if process.config.watch.histograms else None
    return ModelSetup(model, optimizer, trained, Unused(), own, frozen, _average(plan, model), meters, histograms)


def _check_norms(model: nn.Module, device: torch.device) -> None:
    """Refuse norm layers that torch has no code for on this device, before a pass fails in them."""
    name = next((name for name, part in model.named_modules() if isinstance(part, nn.SyncBatchNorm)), None)
    if name is not None and device.type == "cpu":
        at = f"model() has a SyncBatchNorm ({name or 'itself'}), and torch has none for the CPU"
        raise UserError("recipe", at, "make it a BatchNorm where torch.cuda.is_available() is False")


def norm_labels(process: Process, trained: Trained, optimizer: Optimizer) -> list[str]:
    """What the window's norms are measured of: each parameter group, or each parameter where the run file asks."""
    if process.config.watch.layers:
        return [layer_label(name) for name in trained.names]
    return [f"group{number}" for number in range(len(optimizer.param_groups))]


def label_numbers(process: Process, setup: ModelSetup, held: list[tuple[str, int, Tensor]]) -> Tensor:
    """Which of the meters' labels each tensor of State.held belongs to: int64 [held]."""
    names = {label: number for number, label in enumerate(setup.meters.labels)}
    layers = process.config.watch.layers
    labels = [names[layer_label(name)] if layers else group for name, group, _ in held]
    return torch.tensor(labels, device=process.device)


def _average(plan: Plan, model: nn.Module) -> "Average | None":
    if plan.ema is None:
        return None
    from harness.engine.ema import Average  # it brings the tensors of shards, half a CPU second

    return Average(model, persistent(model))
