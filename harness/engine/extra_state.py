"""The extra state of modules, besides tensors, by torch's protocol for it: get_extra_state() and set_extra_state()."""

from torch import Tensor, nn

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice, whole
from harness.config.errors import UserError
from harness.engine.plain import pack, unpack

EXTRA = "extra/"


def extra_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with extra state, by the name that it has in checkpoints."""
    own = nn.Module.get_extra_state
    return {f"{EXTRA}{name or '.'}": m for name, m in model.named_modules() if type(m).get_extra_state is not own}


def extra_state(model: nn.Module) -> dict[str, Tensor]:
    """The extra state of all modules as named tensors, on the host or where the modules have them.

    Raises UserError if it is not plain data.
    """
    found: dict[str, Tensor] = {}
    for name, module in extra_modules(model).items():
        kind = type(module).__name__
        if type(module).set_extra_state is nn.Module.set_extra_state:
            raise UserError("recipe.use", f"{kind} has get_extra_state() and no set_extra_state(): it cannot be resumed", "add it")
        try:
            text, *tensors = pack(module.get_extra_state())
        except TypeError as e:
            at = f"get_extra_state() of {kind} gave {e}, which no checkpoint can hold"
            remedy = "give None, numbers, text and tensors, in dicts, lists and tuples, or make it a buffer"
            raise UserError("recipe.use", at, remedy) from e
        found |= {name: text} | {f"{name}/{number}": tensor for number, tensor in enumerate(tensors)}
    return found


def extra_pieces(model: nn.Module, rank: int) -> list[TensorSlice]:
    """The extra state as checkpoint slices; only rank 0 saves any."""
    return [whole(name, tensor) for name, tensor in extra_state(model).items()] if rank == 0 else []


def load_extra_state(model: nn.Module, source: SliceReader) -> list[str]:
    """Load the modules' extra state; returns the names of modules for which the checkpoint has none."""
    lacking = []
    for name, module in extra_modules(model).items():
        if name not in source:
            lacking.append(name.removeprefix(EXTRA))
            continue
        tensors, number = [source.whole(name)], 0
        while f"{name}/{number}" in source:
            tensors.append(source.whole(f"{name}/{number}"))
            number += 1
        module.set_extra_state(unpack(tensors))
    return lacking
