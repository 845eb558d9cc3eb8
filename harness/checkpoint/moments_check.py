"""Numbers of an optimizer's state as they are read, held against what is possible: a step with others ruins the weights."""

import torch
from torch import Tensor

_POSITIVE = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "step"})
"""Entries that no optimizer of torch makes negative."""
_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "momentum_buffer"})
"""Entries that are of floating point in every optimizer that has them."""


def check_type(name: str, dtype: torch.dtype) -> None:
    """Raises ValueError where the tensor `name` of a checkpoint cannot be of this type."""
    if _key(name) in _MOMENTS and not dtype.is_floating_point and not dtype.is_complex:
        raise ValueError(f"{name} is {dtype}")


def odd_numbers(name: str, read: Tensor) -> str:
    """What is wrong with numbers of the tensor `name`: the writer saves none that are not finite. Empty if nothing is."""
    key = _key(name)
    if not key or read.element_size() == 1 or not (read.is_floating_point() or read.is_complex()):
        return ""
    if not torch.isfinite(read).all():
        return f"{name} that is not finite"
    return (
        f"{name} that is negative"
        if key in _POSITIVE and bool((torch.view_as_real(read) if read.is_complex() else read).lt(0).any())
        else ""
    )


def _key(name: str) -> str:
    """The entry of the optimizer's state that a tensor is; empty if it is none."""
    return name.rpartition("/")[2] if name.startswith("optimizer/") else ""
