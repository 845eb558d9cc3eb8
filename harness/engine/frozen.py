"""The weights that are not trained: they keep their type, and checkpoints have their digests in their place.

A recipe may move them itself (the average of a student that is its teacher): what has moved is saved as trained weights are.
"""

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from harness.distributed.process_group import gather
from harness.engine.trained import Trained
from harness.modeling.tensor_digest import digest
from harness.recipes.base import Recipe

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def base_digests(model: nn.Module, recipe: Recipe) -> dict[str, str]:
    """Digests of the fresh weights that may not be trained: frozen ones, and all where the recipe has an optimizer of its own."""
    every = type(recipe).optimizer is not Recipe.optimizer
    model.train()  # some models freeze weights in here
    return {name: digest(p) for name, p in model.named_parameters() if every or not p.requires_grad}


@final
class Frozen:
    """The weights of a model that are not trained. `local` gives this rank's part of a tensor."""

    def __init__(self, model: nn.Module, trained: Trained, digests: Mapping[str, str], local: Callable[[Tensor], Tensor]) -> None:
        names = set(trained.names)
        self.digests = {name: found for name, found in digests.items() if name not in names}
        """The fresh weights' digests, by name."""
        self.weights = {name: p for name, p in model.named_parameters() if name not in names}
        self._local, self._kept = local, set[str]()
        self._sums = self._look()

    def moved(self) -> dict[str, Tensor]:
        """The names of frozen weights that were changed or loaded since the start, on any rank. All ranks call it."""
        if not self.weights:
            return {}
        found = self._look()
        for name, same in zip(self.weights, (found == self._sums).tolist(), strict=True):
            if not same:
                self._kept.add(name)
        self._kept = set().union(*gather(sorted(self._kept)))
        return {name: p for name, p in self.weights.items() if name in self._kept}

    def loaded(self, name: str) -> None:
        """Note that a weight was loaded from a checkpoint: later checkpoints hold it, too."""
        self._kept.add(name)

    def _look(self) -> Tensor:
        """A sum over the bits of each, which any move changes: int64 [weights], on their device."""
        return torch.stack([_bits(self._local(p).detach()) for p in self.weights.values()]) if self.weights else torch.zeros(0)


def _bits(tensor: Tensor) -> Tensor:
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return flat.contiguous().reshape(-1).view(_BITS[flat.element_size()]).sum(dtype=torch.int64)
