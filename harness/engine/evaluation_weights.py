"""Evaluation at other weights than those being trained (schedule-free optimizers, a running average): swapped in for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.engine.model_setup import ModelSetup
from harness.engine.state import State
from harness.modeling.own_optimizer import TwoModes


@contextmanager
def evaluated(setup: ModelSetup, state: State) -> Iterator[None]:
    """Inside the context the weights are those of the optimizer's evaluation mode (schedule-free optimizers); most have none."""
    optimizer = setup.optimizer
    if not isinstance(optimizer, TwoModes):
        yield
        return
    state.settle()
    held = [state.local(p.detach()) for p in setup.trained.parameters]
    before = [p.clone() for p in held]
    optimizer.eval()
    try:
        yield
    finally:
        state.settle()
        optimizer.train()
        torch._foreach_copy_(held, before)  # switching there and back is not exact


@contextmanager
def averaged(setup: ModelSetup, state: State) -> Iterator[None]:
    """Inside, the weights are their running average."""
    assert setup.average is not None  # noqa: S101  the plan has one
    state.settle()
    setup.average.swap()
    try:
        yield
    finally:
        state.settle()
        setup.average.swap()
