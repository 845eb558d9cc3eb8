"""Where the weights that torch's optimizer moves lie on the ranks, and the optimizer's state with them."""

from abc import ABC, abstractmethod

from torch import Tensor

from harness.checkpoint.tensor_slices import SliceReader


class Layout(ABC):
    """What this rank holds of a tensor. `copies` ranks hold the same part."""

    copies: int
    fixed: bool
    """Whether weights stay where they are in memory for the whole run."""

    @abstractmethod
    def local(self, tensor: Tensor) -> Tensor:
        """This rank's part of a tensor."""

    @abstractmethod
    def shard(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """(first element, elements) that this rank alone holds of a tensor, or None if every rank holds it whole."""

    @abstractmethod
    def read(self, source: SliceReader, name: str, like: Tensor | None) -> Tensor:
        """A tensor of a checkpoint, laid out as the parameter `like` is."""

    @abstractmethod
    def settle(self) -> None:
        """Restore the placement of the weights between steps, where a pass has changed it."""
