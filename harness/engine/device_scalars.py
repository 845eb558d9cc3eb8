"""Numbers of many steps that are copied to the host together: tensors stay on the device until a window is read."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

Number = Tensor | float
"""A 0-d tensor on the device, or a number that the host knows already."""


@final
class DeferredScalars:
    """Rows of numbers. Adding a row costs no operation on the device; reading all rows costs a few, however many there are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: list[Sequence[Number]] = []
        """Those since `take` was called last."""

    def add(self, row: Sequence[Number]) -> None:
        """One more row. Its tensors must not change any more."""
        self.rows.append(row)

    def last(self) -> Sequence[Number]:
        """The newest row; it is not removed."""
        return self.rows[-1]

    def take(self) -> list[Sequence[Number]]:
        """The rows since the last call; they are removed."""
        rows, self.rows = self.rows, []
        return rows

    def cells(self, rows: Sequence[Sequence[Number]]) -> Tensor:
        """All values of the rows that are tensors, row by row: float64 [cells], on the device. Does not synchronise."""
        found = [cell for row in rows for cell in row if isinstance(cell, Tensor)]
        return (
            torch.stack(found).to(self.device, torch.float64) if found else torch.zeros(0, dtype=torch.float64, device=self.device)
        )

    def whole(self, rows: Sequence[Sequence[Number]]) -> Tensor:
        """Rows of one length, on the device: float64 [rows, columns]. A column is all on the device or all known to the host."""
        return torch.stack([self._column(cells) for cells in zip(*rows, strict=True)], 1)

    def _column(self, cells: Sequence[Number]) -> Tensor:
        """One column: float64 [rows]."""
        found = [cell for cell in cells if isinstance(cell, Tensor)]
        if not found:
            return torch.tensor(cells, dtype=torch.float64).to(self.device, non_blocking=True)
        if len(found) < len(cells):
            found = [on_device(cell, self.device, torch.float64) for cell in cells]
        return torch.stack(found).to(self.device, torch.float64)


def on_device(number: Number, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A number as a tensor [] of this type. One of the host is filled in: `torch.as_tensor` would wait for its copy to a GPU."""
    return number.to(dtype) if isinstance(number, Tensor) else torch.full((), number, dtype=dtype, device=device)


def filled(rows: Sequence[Sequence[Number]], cells: Sequence[float]) -> list[list[float]]:
    """`rows` with their tensors replaced by numbers: `cells`, the values of `DeferredScalars.cells` on the host."""
    told = iter(cells)
    return [[next(told) if isinstance(cell, Tensor) else cell for cell in row] for row in rows]


def norms(tensors: list[Tensor]) -> Tensor:
    """The norm of each of some tensors of one device: [tensors]."""
    return torch.stack(torch._foreach_norm(tensors))


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of tensors of one device as one vector."""
    norm: Tensor = torch.linalg.vector_norm(norms(tensors))
    return norm
