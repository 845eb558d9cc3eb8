"""How the elements of a tensor lie in memory. A kernel that moves all weights at once pairs elements by their place there."""

import torch
from torch import Tensor, nn

from harness.config.errors import UserError


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape lie alike: the same strides, but for dimensions of size 1, whose stride is never used."""
    sizes = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size == 1 or mine == theirs for size, mine, theirs in sizes)


def laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, of the parameter's shape, in the parameter's memory format; itself where it lies so already."""
    if same_layout(value, parameter):
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def dense(parameter: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in any order of the dimensions."""
    return parameter.is_contiguous() or torch.empty_like(parameter, device="meta").stride() == parameter.stride()


def check_row_major(model: nn.Module, backend: str) -> None:
    """Raises UserError if a parameter is not row-major: what cuts, sends or flattens parameters takes them so."""
    for name, parameter in model.named_parameters():
        if not parameter.is_contiguous():
            at = f"parameter {name} is not contiguous (strides {parameter.stride()}), which {backend} cannot take"
            raise UserError("recipe.use", at, "make it so in model() with .contiguous(), or use backend.name: ddp")
