"""What a step costs that no load of the machine changes: Python calls, operations of torch, waits for the device."""

import cProfile
import pstats
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WARM, STEPS = 12, 20
SYNC = "aten._local_scalar_dense.default"
"""What `.item()`, `float(tensor)` and `if tensor` come to: on a GPU the host waits here."""


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that reach torch's dispatcher, those of the backward and the optimizer too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do it."""
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Cost:
    """Per step: calls of Python functions (built-in ones too, as cProfile counts them), operations, waits."""

    calls: float
    operations: float
    syncs: float


def counted(batches: Iterator[Any]) -> "tuple[Iterator[Any], Callable[[], Cost]]":
    """(batches that count what is done between them, what was found once they are used up).

    WARM steps are taken first; then operations are counted over STEPS steps, then calls over as many.
    """
    operations, profile = Operations(), cProfile.Profile()

    def feed() -> Iterator[Any]:
        for _ in range(WARM):
            yield next(batches)
        with operations:
            for _ in range(STEPS):
                yield next(batches)
        profile.enable()
        for _ in range(STEPS):
            yield next(batches)
        profile.disable()

    def cost() -> Cost:
        calls: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
        return Cost(calls / STEPS, operations.found.total() / STEPS, operations.found[SYNC] / STEPS)

    torch.set_num_threads(1)
    return feed(), cost
