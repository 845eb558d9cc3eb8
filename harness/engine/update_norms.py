"""How far a step moves the weights: norms by group of parameters, from the weights after it and a part of those before.

Only a part of a large tensor is sampled, so that no second copy of the weights is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from harness.engine.device_scalars import norms

FOLLOWED = 2_048
"""About how many elements of a tensor are sampled through a step; all of them in a small tensor."""


@dataclass(frozen=True)
class View:
    """This rank's part of a parameter, and the sample of it that is followed through a step; views, no copies."""

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
class UpdateNorms:
    """Made before a step of the parameters' `views`; `norms` after it."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views
        self._before = list(torch._foreach_add([view.part for view in views], 0))

    def norms(self, also: Sequence[Tensor]) -> Tensor:
        """Norms of this rank's part of each parameter, of each sample, of each sample's update, and of the tensors `also`.

        [3 parameters + len(also)], in this order.
        """
        parts = [view.part for view in self._views]
        torch._foreach_sub_(self._before, parts)
        return norms([*(view.held for view in self._views), *parts, *self._before, *also])
