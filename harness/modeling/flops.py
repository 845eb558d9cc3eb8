"""Floating-point operations of a training step, counted once a start, on shapes alone wherever the model can run so."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from harness.data.batch_tree import move
from harness.recipes.base import Recipe

META, CPU = torch.device("meta"), torch.device("cpu")
FEW, MOST_S = 2, 10.0
"""Samples, and seconds at most, of a count by a real pass on the host."""
MOST_PARAMETERS = 300_000_000
"""Models up to this size may be made once more on the host, where shapes alone do not tell."""

Example = Callable[[int], tuple[object, int]]
"""Gives (a batch of at most so many samples, how many it has)."""


class CountError(Exception):
    """The operations could not be counted; the text says why, in one line."""


def count_flops(recipe: Recipe, example: Example, micro: int, parameters: int) -> float:
    """Operations of forward and backward per sample: matrix products and convolutions; attention in full, not the causal half.

    First all on the meta device, which has shapes and no numbers. Where the code looks at numbers, the batch is given as it is and
    the weights stay on meta: what depends on inputs alone (masks, lengths) then goes as in training. Where it looks at activations,
    a small model makes one real pass over FEW samples on the host. All passes are in evaluation mode: a recipe that counts its
    training passes counts none of them. Raises CountError.
    """
    try:
        batch, samples = example(micro)
        with META, _counting() as counter:
            model = recipe.model()
            _pass(recipe, model.eval(), move(batch, META, torch.get_default_dtype()))
        return float(counter.get_total_flops()) / samples
    except Exception as e:  # noqa: BLE001  a model that fails on shapes alone can still train: counting must not stop it
        why = e
    with torch.random.fork_rng(devices=[]), CPU:
        for count in (_on_real_batch, _for_real):
            try:
                return count(recipe, example, micro, parameters)
            except Exception as e:  # noqa: BLE001  as above
                why = e
    raise CountError(_line(why)) from why


def _on_real_batch(recipe: Recipe, example: Example, micro: int, parameters: int) -> float:
    """With the batch as it is, and weights without numbers."""
    batch, samples = example(micro)
    model = _without_numbers(recipe, parameters)
    with _counting() as counter, _Mixed():  # type: ignore[no-untyped-call]
        _pass(recipe, model.eval(), move(batch, CPU, torch.get_default_dtype()))
    return float(counter.get_total_flops()) / samples


def _for_real(recipe: Recipe, example: Example, micro: int, parameters: int) -> float:
    """By a pass on the host. Raises CountError where the model is too large or the pass takes too long."""
    if parameters > MOST_PARAMETERS:
        raise CountError("the model's code depends on the values of its activations, and it is too large for a pass on the host")
    batch, samples = example(min(micro, FEW))
    model = copy.deepcopy(recipe.model()).to(CPU)  # a recipe may give the model that is being trained
    # the CPU's own attention kernel is unknown to torch's counter
    with sdpa_kernel(SDPBackend.MATH), _counting() as counter, _Deadline():
        _pass(recipe, model.eval(), move(batch, CPU, torch.get_default_dtype()))
    return float(counter.get_total_flops()) / samples


def _without_numbers(recipe: Recipe, parameters: int) -> nn.Module:
    """The model on the meta device; one whose code needs numbers to be made is made for real, and a copy of it is there."""
    try:
        with META:
            model = recipe.model()
    except Exception as e:  # as in count_flops
        if parameters > MOST_PARAMETERS:
            raise CountError(f"the model cannot be made on torch's meta device: {_line(e)}") from e
        model = recipe.model()
    held = [*model.parameters(), *model.buffers()]
    if all(t.is_meta for t in held):
        return model
    on_meta = {id(t): torch.empty_like(t.detach(), device=META) for t in held}
    for p in model.parameters():
        on_meta[id(p)] = nn.Parameter(on_meta[id(p)], requires_grad=p.requires_grad)
    return copy.deepcopy(model, on_meta)


def _pass(recipe: Recipe, model: nn.Module, batch: Any) -> None:
    """Forward and backward. A recipe may give the same model at each call: nothing is left in its gradients."""
    try:
        total, _ = recipe.loss(model, batch)
        total.backward()  # type: ignore[no-untyped-call]
    finally:
        model.zero_grad()


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    grouped = {torch.ops.aten._grouped_mm: _grouped_flops}
    with FlopCounterMode(display=False, custom_mapping=grouped) as counter:
        yield counter


def _grouped_flops(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """Operations of a grouped matrix product, which mixtures of experts use: the groups share out one of the three extents."""
    batches = a[0] if len(a) == len(b) == 3 else 1
    return 2 * batches * a[-2] * a[-1] * b[-1]


class _Mixed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations on the batch alone are done on the CPU; those with a tensor on meta among their inputs give shapes alone.

    Indices, masks and positions are numbers, also where the code asks for them on the device of an activation; what is drawn or
    filled in as floats there is on meta.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation. Raises CountError where it would write shapes alone into numbers."""
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(t.is_meta for t in tensors):
            if kwargs.get("device") != META:
                return func(*args, **kwargs)
            made = func(*args, **kwargs | {"device": CPU})
            return tree_map_only(Tensor, lambda t: t.to(META) if t.is_floating_point() else t, made)
        if func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
            raise CountError(f"{func} writes activations into a tensor of the batch")
        args, kwargs = tree_map_only(Tensor, lambda t: t.to(META), (args, kwargs))
        if func is torch.ops.aten._grouped_mm.default:  # torch 2.13 knows its shapes for bf16 alone
            halves = [t.to(torch.bfloat16) for t in args[:2]]
            return func(*halves, *args[2:], **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)


class _Deadline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ends a pass that takes too long."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._end = time.monotonic() + MOST_S

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation. Raises CountError past the end."""
        if time.monotonic() > self._end:
            raise CountError(f"a pass over {FEW} samples takes more than {MOST_S:g} s on the host")
        return func(*args, **kwargs or {})


def _line(error: Exception) -> str:
    """An error as one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, CountError) else f"{type(error).__name__}: {text}"
