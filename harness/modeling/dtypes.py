"""The types of a model's tensors: trained weights take the run's type, frozen weights keep the one that the recipe gave them."""

import torch
from torch import Tensor, nn

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What models compute in. Narrower types (float8) are storage that the model itself unpacks: never cast."""


def cast_model(model: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """The model with its trained weights as `dtype`, in place; `device`: where it is moved, if anywhere.

    Complex tensors get the complex type of the same width: `Module.to(dtype)` would drop their imaginary parts. Frozen weights
    keep their type (a base in bfloat16 stays so), and where one of them is narrower than `dtype` the buffers do too: such a model
    mixes types on purpose. In float64, which is there to compare layouts to the last digits, everything is cast.
    """
    model.train()  # some models freeze weights in here
    everything = dtype == torch.float64
    frozen = [p for p in model.parameters() if not p.requires_grad]
    mixed = not everything and any(p.dtype != _as(p, dtype) for p in frozen)
    kept = {id(p) for p in ([] if everything else frozen)} | {id(b) for b in (model.buffers() if mixed else ())}

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(device, tensor.dtype if id(tensor) in kept else _as(tensor, dtype))

    # as Module.to does: tied weights stay tied, and modules that keep views of weights make them again
    model._apply(convert)  # type: ignore[no-untyped-call]
    return model


def _as(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type of a tensor in a model of `dtype`."""
    if tensor.is_complex():
        return _COMPLEX[dtype]
    return dtype if tensor.dtype in _NUMBERS else tensor.dtype
