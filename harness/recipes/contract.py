"""What a recipe's methods must return. Checked once, at the start: one line names the method, what it gave and must give."""

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from harness.config.errors import UserError
from harness.data.columns import Columns
from harness.data.feed import Data, MapStyle
from harness.data.joined import is_sets, joined
from harness.plan.plan import Plan
from harness.recipes.base import Recipe, Split, Sum, open_data
from harness.recipes.gathers import no_collectives

LOSS = "(sum, count): the summed loss as a scalar tensor with a gradient, and the number of items in it"
_LOOKUPS = ("EmbeddingBackward0", "EmbeddingBagBackward0")


def train_split(recipe: Recipe, seed: int) -> Data:
    """data("train"), checked; `seed` is the run's. Raises UserError."""
    return _data(open_data(recipe, "train", seed), "train")


def valid_split(recipe: Recipe, seed: int) -> Data | None:
    """data("valid"), checked, with the run's `seed`; None if the recipe has no validation. Raises UserError."""
    data = open_data(recipe, "valid", seed)
    if is_sets(data):
        return joined({name: _data(one, "valid", f" for {name!r}") for name, one in data.items()})
    return None if data is None else _data(data, "valid")


def _data(data: object, split: Split, name: str = "") -> Data:
    must, call = "a Table, or a data set with len() and [i]", f'data("{split}"){name}'
    if is_sets(data):
        raise _wrong(call, data, "one data set; several are mixed by mixture(sets, weights)")
    if isinstance(data, IterableDataset):
        must += ": samples are read by index, so that a run can resume at any position on any number of GPUs"
    columns = isinstance(data, Mapping) or (isinstance(data, tuple) and all(isinstance(c, Tensor | np.ndarray) for c in data))
    if columns or isinstance(data, type | str | IterableDataset) or not isinstance(data, Columns | MapStyle):
        raise _wrong(call, data, "a Table of these columns: Table({'x': ..., 'y': ...})" if columns else must)
    if len(data) == 0:
        remedy = "give it samples" if split == "train" else "give it samples, or return None to train without validation"
        raise UserError("recipe.use", f"{call} is empty", remedy)
    return data


def fresh_model(recipe: Recipe) -> nn.Module:
    """model(), checked. Raises UserError."""
    model: object = recipe.model()
    if not isinstance(model, nn.Module):
        raise _wrong("model()", model, "one nn.Module")
    lazy = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)]
    if lazy:
        at = f"model() has parameters without a shape ({', '.join(lazy[:4])})"
        raise UserError("recipe.use", at, "give lazy modules their sizes, or run a batch through the model within model()")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("recipe.use", "model() has no parameter that is trained", "set requires_grad on the parameters to train")
    return model


def own_optimizer(recipe: Recipe, model: nn.Module, plan: Plan) -> Optimizer | None:
    """optimizer(), checked; None if the run file names one. Raises UserError."""
    optimizer: object = recipe.optimizer(model, plan)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise _wrong("optimizer()", optimizer, "one torch.optim.Optimizer, or None for optim.name; the run file has the schedule")
    return optimizer


@final
class Loss:
    """A recipe's loss(), called as `of(model, batch)`. What it gives is checked the first time it is called. Raises UserError."""

    def __init__(self, recipe: Recipe, *, whole: bool = True) -> None:
        """`whole`: the model lies whole on each rank, so that any communication is the recipe's."""
        self._recipe, self._whole = recipe, whole
        self.of: Callable[[nn.Module, Any], Sum] = self._first

    def _first(self, model: nn.Module, batch: Any) -> Sum:
        with no_collectives(self._recipe, whole=self._whole):
            found: Any = self._recipe.loss(model, batch)
        check_loss(found, graded=torch.is_grad_enabled())
        self.of = self._recipe.loss
        total, count = found
        return total, count


def check_loss(found: Any, *, graded: bool) -> None:
    """Whether `found` is what loss() must give; `graded`: it was computed where gradients are kept. Raises UserError."""
    total, count = _pair("loss()", found, LOSS)
    if not isinstance(total, Tensor) or total.ndim or not total.is_floating_point():
        cut = " (.item() cuts it off from the model)" if isinstance(total, Real) else ""
        raise UserError("recipe.use", f"loss() gave {came(total)} as the sum{cut}", f"give {LOSS}")
    _check_count("loss()", count)
    if graded and not total.requires_grad:
        at = "loss() gave a sum without a gradient: it was detached, or computed under torch.no_grad()"
        raise UserError("recipe.use", at, "compute it from the model's output, and do not call backward() in loss()")
    if graded and isinstance(count, Tensor) and count.requires_grad:
        at = "loss() gave a count with a gradient, which would be lost: the sum is divided by the count of all ranks"
        raise UserError("recipe.use", at, "give the number of items; detach() it where it is computed from weights")
    if graded and any(node.name() in _LOOKUPS and node._saved_sparse for node in _graph(total)):
        at = "loss() leads to sparse gradients (an embedding with sparse=True), which are not supported"
        raise UserError("recipe.use", at, "make the embedding with sparse=False")


def check_metrics(recipe: Recipe, found: Any) -> Mapping[str, Sum]:
    """What metrics() gave for one batch, checked. Raises UserError."""
    must = "a dict of (sum, count) by name, with 'loss' among them"
    if type(recipe).metrics is Recipe.metrics:
        check_loss(found["loss"], graded=False)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise _wrong("metrics()", found, must)
    if "loss" not in found:
        raise UserError("recipe.use", f"metrics() gave {', '.join(found) or 'nothing'}, and no 'loss'", f"give {must}")
    for name, pair in found.items():
        call = f"metrics() for {name!r}"
        total, count = _pair(call, pair, "(sum, count), both scalars")
        if not _scalar(total):
            raise _wrong(call, total, "(sum, count), both scalars: a metric over all predictions belongs in score()")
        _check_count(call, count)
    return found


def check_outputs(found: Any) -> Mapping[str, Tensor]:
    """What outputs() gave for one batch, checked. Raises UserError."""
    must = "a dict of tensors [n, ...], one row per sample"
    if not isinstance(found, Mapping):
        raise _wrong("outputs()", found, must)
    for name, rows in found.items():
        if not isinstance(rows, Tensor) or rows.ndim == 0:
            raise _wrong(f"outputs() for {name!r}", rows, must)
    return found


def check_score(found: Any) -> dict[str, float]:
    """What score() gave, as numbers. Raises UserError."""
    if not isinstance(found, Mapping):
        raise _wrong("score()", found, "a dict of numbers by name")
    for name, value in found.items():
        if not _scalar(value):
            raise _wrong(f"score() for {name!r}", value, "a number")
    return {str(name): float(value) for name, value in found.items()}


def came(value: object) -> str:
    """A value as text: its type and size."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _wrong(method: str, found: object, must: str) -> UserError:
    return UserError("recipe.use", f"{method} gave {came(found)}", f"give {must}")


def _pair(method: str, found: Any, must: str) -> tuple[Any, Any]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise _wrong(method, found, must)
    return found[0], found[1]


def _scalar(value: object) -> bool:
    """A number, or a tensor or array that holds one without an axis."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, Real | np.bool_)


def _check_count(method: str, count: Any) -> None:
    """A count is a number of at least 0. Of a tensor only the type is looked at: its value may be on a device."""
    boolean = isinstance(count, bool | np.bool_) or (isinstance(count, Tensor) and count.dtype is torch.bool)
    if boolean or not _scalar(count):
        must = "the number of items: an int, a float or a scalar tensor"
        raise UserError("recipe.use", f"{method} gave {came(count)} as the count", f"give {must}")
    if not isinstance(count, Tensor) and not count >= 0:
        raise UserError("recipe.use", f"{method} gave {count:g} as the count", "give the number of items, 0 where there are none")


def _graph(total: Tensor) -> Iterator[Any]:
    """The nodes of the graph that leads to a tensor."""
    seen, todo = set(), [total.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [follows for follows, _ in node.next_functions]
