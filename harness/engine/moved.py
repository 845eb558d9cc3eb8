"""How far a step moves the weights: norms by group of parameters, from the weights after it and a part of those before.

Of a large tensor a part is followed, so that no second copy of the weights is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from harness.engine.ledger import norms

FOLLOWED = 8_192
"""Elements of a tensor, about, that are followed through a step; all of them in a small one."""


@dataclass(frozen=True)
class View:
    """What lies on this rank of a parameter's values, and the part of it that is followed; no copies."""

    held: Tensor
    part: Tensor

    @staticmethod
    def of(held: Tensor) -> "View":
        """The first rows of a tensor that is large, about FOLLOWED elements; a small one as a whole."""
        held = part = held.detach()
        for dim, size in enumerate(held.shape):
            if part.numel() > FOLLOWED:
                part = part.narrow(dim, 0, max(FOLLOWED * size // part.numel(), 1))
        return View(held, part)


@final
class Moved:
    """Made before a step of the parameters' `views`; `squares` after it."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views
        self._before = list(torch._foreach_add([view.part for view in views], 0))

    def squares(self, grads: Tensor | None, labels: Tensor, count: int) -> Tensor:
        """Squared norms by label, as NormRow has them: float64 [count, 4]; `labels` int64 [parameters] says whose is whose.

        `grads`: the gradients' norms, float [parameters]; None where the backend keeps them to itself.
        """
        views, device = self._views, labels.device
        torch._foreach_sub_(self._before, [view.part for view in views])
        cut = [number for number, view in enumerate(views) if view.held is not view.part]
        looked_at = [*(view.held for view in views), *self._before, *(views[number].part for number in cut)]
        squares = norms(looked_at).to(device, torch.float64) ** 2
        weights, moved = squares[: len(views)], squares[len(views) : 2 * len(views)]
        sampled = weights.index_copy(0, torch.tensor(cut, device=device), squares[2 * len(views) :]) if cut else weights
        known = torch.full_like(weights, float("nan")) if grads is None else grads.to(device, torch.float64) ** 2
        out = torch.zeros(count, 4, dtype=torch.float64, device=device)
        return out.index_add_(0, labels, torch.stack([weights, sampled, moved, known], 1))
