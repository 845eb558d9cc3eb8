"""Metrics over all predictions: the rows that every rank's passes gave, gathered in the order of the data, and their score."""

import json
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.config.errors import UserError
from harness.distributed.process_group import agree, collect, on_rank_0
from harness.recipes.base import Recipe
from harness.recipes.contract import check_score

Rows = list[tuple[int, dict[str, Tensor]]]
"""(first sample of a pass, its rows by name: [n, ...] on the host)."""


class TooFewError(Exception):
    """A part of the validation split has no score: there may be one class alone in it."""


def score(recipe: Recipe, rows: Rows, *, whole: bool) -> dict[str, float]:
    """What score() makes of all ranks' rows, on every rank. To be called on all ranks together. Raises UserError.

    `whole`: the rows are those of the whole split. Where they are a part of it, a ValueError of score() becomes a TooFewError.
    """
    if type(recipe).score is Recipe.score:
        return {}
    gathered = [one for each in collect(rows) or () for one in each]
    found = on_rank_0(lambda: json.dumps(_scores(recipe, gathered, whole=whole)))
    scores: dict[str, float] | None = json.loads(agree(found or ""))
    if scores is None:
        raise TooFewError
    return scores


def _scores(recipe: Recipe, rows: Rows, *, whole: bool) -> dict[str, float] | None:
    """What score() makes of rows; None if they are a part, and have none."""
    outputs = joined([part for _, part in sorted(rows, key=lambda row: row[0])])
    if whole:
        return check_score(recipe.score(outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = recipe.score(outputs)
        except ValueError:
            return None
    return check_score(found)


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of all parts by name. Raises UserError if they do not fit together."""
    names = list(parts[0]) if parts else []
    if any(list(part) != names for part in parts):
        raise UserError("recipe.use", "outputs() gave other names for other batches", "give the same tensors for each")
    try:
        return {name: torch.cat([part[name] for part in parts]) for name in names}
    except (RuntimeError, TypeError) as e:
        shapes = sorted({str(list(part[name].shape[1:])) for part in parts for name in names})
        at = f"outputs() gave rows of different shapes ({', '.join(shapes[:4])})"
        raise UserError("recipe.use", at, "pad them to one shape") from e
