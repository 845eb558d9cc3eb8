"""Fingerprints by which tensors are compared between ranks, or between a run and its resumption: a digest, or a sketch with
tolerance."""

import math
from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor

BLOCK = 1 << 20
CLOSE = 1e-2
"""Tolerance of sketches, relative to the norm: allows for rounding (also to bf16), not for different random numbers."""
Sketch = Sequence[float]


def digest(tensor: Tensor) -> str:
    """A hash of a tensor's type, shape and bits."""
    state = xxhash.xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def sketch(tensor: Tensor) -> list[float]:
    """The squared norm of a tensor and two projections, in float64; what is not finite counts as 0, 1 or -1."""
    whole = tensor.detach().reshape(-1)
    flat = torch.view_as_real(whole).reshape(-1) if whole.is_complex() else whole
    numbers = [0.0, 0.0, 0.0]
    for low in range(0, len(flat), BLOCK):
        part = flat[low : low + BLOCK].double().cpu().nan_to_num(0.0, 1.0, -1.0)
        at = torch.arange(low, low + len(part), dtype=torch.float64)
        found = (part @ part, part @ torch.sin(at * 0.7548776662466927), part @ torch.cos(at * 0.5698402909980532))
        numbers = [a + float(b) for a, b in zip(numbers, found, strict=True)]
    return numbers


def close(a: Sketch, b: Sketch) -> bool:
    """Whether two sketches are of the same numbers but for rounding."""
    norm = math.sqrt(max(a[0], b[0]))
    return (
        all(abs(x - y) <= CLOSE * norm for x, y in zip(a[1:], b[1:], strict=True)) and abs(a[0] - b[0]) <= 3 * CLOSE * norm * norm
    )
