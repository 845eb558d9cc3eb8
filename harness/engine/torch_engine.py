"""The engine where torch's optimizer in this process owns the step: ddp, fsdp and zero0."""

from harness.engine.gradients import Gradients
from harness.engine.interface import Engine
from harness.engine.layout import Layout
from harness.engine.optimizer_step import TorchStep
from harness.engine.torch_state import TorchState
from harness.engine.training_engine import TrainingEngine


def torch_engine(gradients: Gradients, layout: Layout) -> Engine:
    """The engine of these strategies: `gradients` reduces over ranks, `layout` places the weights."""
    state = TorchState(gradients.process, gradients.setup, layout, gradients.fp16)
    return TrainingEngine(gradients, TorchStep(gradients, state), state)
