"""A whole copy of model and optimizer on each rank: what a process alone, ddp and zero0 share."""

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from harness.checkpoint.tensor_slices import SliceReader
from harness.config.schema import Config
from harness.engine.frozen import base_digests
from harness.engine.initial_model import initial_model
from harness.engine.interface import Estimator
from harness.engine.layout import Layout
from harness.engine.loss_scale import LossScale
from harness.engine.model_setup import ModelSetup, set_up
from harness.engine.moment_noise import moments_estimator
from harness.engine.process import Process, open_process
from harness.modeling.dtypes import cast_model
from harness.modeling.optimizer import open_optimizer
from harness.modeling.prepare import prepare_model
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


@final
class Replicated(Layout):
    """Every rank holds everything."""

    fixed = True

    def __init__(self, ranks: int) -> None:
        self.copies = ranks

    @override
    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    @override
    def shard(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        return None

    @override
    def read(self, source: SliceReader, name: str, like: Tensor | None) -> Tensor:
        return source.whole(name)

    @override
    def settle(self) -> None:
        """Nothing to do: no pass moves the weights."""


@final
@dataclass(frozen=True)
class Replica:
    """One rank's copy, before it is known how the ranks' gradients are reduced. `fp16`: the loss scale, in that precision."""

    process: Process
    plan: Plan
    setup: ModelSetup
    layout: Replicated
    fp16: LossScale | None
    estimator: Estimator


def open_replica(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Replica:
    """Model and optimizer on this rank's device."""
    process = open_process(config, plan, cpu=cpu)
    model = initial_model(recipe, config.run.seed, config.init_from, partial=config.init_partial)
    digests = base_digests(model, recipe)
    model = prepare_model(cast_model(model, process.dtype, process.device), recipe, config.compute)
    optimizer = open_optimizer(plan, recipe, model, fused=True)
    layout = Replicated(process.ranks)
    setup = set_up(process, plan, model, optimizer, digests, layout.local)
    fp16 = LossScale(process.device, optimizer) if config.precision == "fp16" else None
    estimator = moments_estimator(plan, config, optimizer)
    if config.watch.noise_scale and plan.passes > 1 and fp16 is None:
        estimator = "passes"
    return Replica(process, plan, setup, layout, fp16, estimator)
