"""Plain data with tensors in it, as text and tensors: what a module or an optimizer keeps beside its tensors. Nothing is unpickled.

Tuples, and dicts whose keys are no text, are marked: what comes back is of the same types as what was given.
"""

import json
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""A text is padded with spaces to a multiple of so many bytes, so that its size seldom changes."""
_TUPLE, _DICT, _TENSOR = "()", "{}", "tensor"


def pack(value: Any) -> list[Tensor]:
    """`value` as tensors: [its text as uint8 [n], the tensors in it].

    Raises TypeError, with the type that was found, where it is not plain data.
    """
    tensors: list[Tensor] = []
    text = json.dumps(_down(value, tensors)).encode()
    text += b" " * (-len(text) % BLOCK)
    return [torch.frombuffer(bytearray(text), dtype=torch.uint8), *tensors]


def unpack(packed: list[Tensor]) -> Any:
    """What `pack` was given. Raises ValueError if it is not of `pack`."""
    return _up(json.loads(bytes(packed[0].tolist())), packed[1:])


def _down(value: Any, tensors: list[Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        tensors.append(value.detach())
        return {_TENSOR: len(tensors) - 1}
    if type(value) is list:
        return [_down(one, tensors) for one in value]
    if type(value) is tuple:
        return {_TUPLE: [_down(one, tensors) for one in value]}
    if isinstance(value, dict):
        return {_DICT: [[_down(key, tensors), _down(one, tensors)] for key, one in value.items()]}
    raise TypeError(f"a {type(value).__name__}")


def _up(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, list):
        return [_up(one, tensors) for one in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, held),) = tree.items()
    if kind == _TENSOR:
        return tensors[held]
    if kind == _TUPLE:
        return tuple(_up(one, tensors) for one in held)
    if kind == _DICT:
        return {_up(key, tensors): _up(one, tensors) for key, one in held}
    raise ValueError(f"{kind!r} is not plain data")
