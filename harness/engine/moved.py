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
        """Squared norms by label, as NormRow has them: float64 [4, count]; `labels` int64 [parameters] says whose is whose.

        `grads`: the gradients' norms, float [parameters]; None where the backend keeps them to itself.
        """
        parts = [view.part for view in self._views]
        torch._foreach_sub_(self._before, parts)
        found = norms([*(view.held for view in self._views), *parts, *self._before]).to(labels.device, torch.float64)
        known = torch.full_like(found[: len(parts)], float("nan")) if grads is None else grads.to(found)
        squares = torch.cat([found, known]).square_().view(4, -1)
        return torch.zeros(4, count, dtype=torch.float64, device=labels.device).index_add_(1, labels, squares)
