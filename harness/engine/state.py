"""A rank's weights and optimizer state."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice
from harness.engine.update_norms import View


class State(ABC):
    """One rank's part of the state."""

    copies: int
    """How many ranks hold the same part of a weight."""
    local: Callable[[Tensor], Tensor]
    """This rank's part of a tensor that the optimizer moves, or of its state."""

    @abstractmethod
    def pieces(self) -> list[TensorSlice]:
        """See Engine.pieces."""

    @abstractmethod
    def load(self, source: SliceReader) -> list[str]:
        """See Engine.load. Returns the names of modules whose extra state the checkpoint lacks."""

    @abstractmethod
    def held(self) -> list[tuple[str, int, Tensor]]:
        """(name, number of its parameter group, this rank's part) of every trained parameter."""

    @abstractmethod
    def moved(self) -> list[tuple[int, Tensor]]:
        """(number of its parameter group, itself) of each tensor that the optimizer moves."""

    def views(self) -> list[View]:
        """This rank's part of each trained parameter, for the norms of a step's update."""
        return [View.of(held) for _, _, held in self.held()]

    @abstractmethod
    def settle(self) -> None:
        """Restore the placement of the weights between steps, where a pass has changed it."""
