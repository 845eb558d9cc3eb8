"""A stop that is asked for during an evaluation: the ranks agree on it after the same pass, every few seconds."""

import time
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from harness.engine.interface import Engine
from harness.plan.step_triggers import stop_check_steps


class AbandonedError(Exception):
    """An evaluation was left because a stop was asked for. Raised after the same pass on every rank."""


@final
class StopLook:
    """Called after each pass of an evaluation. `asked` says whether this rank was asked to stop.

    Looking is a reduction and waits for the device. It is done after the first pass, then after twice as many each time, until as
    many take as long as between two looks of training.
    """

    def __init__(self, engine: Engine, asked: Callable[[], bool]) -> None:
        self._engine, self._asked = engine, asked
        self._passes, self._wait = 0, 1
        self._since_s = time.monotonic()

    def __call__(self) -> None:
        """Raises AbandonedError, on all ranks alike."""
        self._passes += 1
        if self._passes < self._wait:
            return
        now_s = time.monotonic()
        mine = torch.tensor([float(self._asked()), now_s - self._since_s], dtype=torch.float64, device=self._engine.device)
        asked, seconds = self._engine.reduce(mine).tolist()
        if asked:
            raise AbandonedError
        self._wait = min(2 * self._wait, stop_check_steps(self._passes, seconds / self._engine.processes))
        self._passes, self._since_s = 0, now_s

    def reduce(self, sums: Tensor) -> Tensor:
        """`engine.reduce`, which all ranks call equally often, as a pass."""
        self()
        return self._engine.reduce(sums)
