"""Numbers of many steps that leave the device together: what is a tensor stays where it is until a window is read."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

Number = Tensor | float
"""A 0-d tensor on the device, or a number that the host knows already."""


@final
class Ledger:
    """Rows of numbers. To add one costs no operation on the device; to read all of them a few, whatever their number."""

    def __init__(self, device: torch.device, columns: int) -> None:
        self.device, self.columns = device, columns
        self.rows: list[Sequence[Number]] = []

    def add(self, row: Sequence[Number]) -> None:
        """One more row. Its tensors must not change any more."""
        self.rows.append(row)

    @torch.no_grad()
    def read(self) -> Tensor:
        """All rows since the last call, float64 [rows, columns] on the device. Waits for nothing."""
        rows, self.rows = self.rows, []
        if not rows:
            return torch.zeros(0, self.columns, dtype=torch.float64, device=self.device)
        columns = list(zip(*rows, strict=True))
        kinds = [set(map(type, column)) for column in columns]
        host = [column for column, kind in zip(columns, kinds, strict=True) if Tensor not in kind]
        known = iter(torch.tensor(host, dtype=torch.float64).to(self.device, non_blocking=True)) if host else iter(())
        parts = [self._there(c, len(k) > 1) if Tensor in k else next(known) for c, k in zip(columns, kinds, strict=True)]
        return torch.stack(parts, 1)

    def _there(self, column: Sequence[Number], mixed: bool) -> Tensor:
        """A column that is on the device, wholly or in part: float64 [rows]."""
        cells = [torch.as_tensor(cell, dtype=torch.float64, device=self.device) for cell in column] if mixed else column
        return torch.stack(cells).to(self.device, torch.float64)  # type: ignore[arg-type]


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of tensors of one device as one vector."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm
