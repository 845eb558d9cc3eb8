"""The weights that a model is evaluated at, where they are others than those that it trains: put in their place for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.engine.model_setup import ModelSetup
from harness.engine.state import State
from harness.modeling.own_optimizer import TwoModes


@contextmanager
def evaluated(setup: ModelSetup, state: State) -> Iterator[None]:
    """Inside, the weights are those of the optimizer's other mode, where it has two; most optimizers have one."""
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
        torch._foreach_copy_(held, before)  # to there and back is not exact


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
