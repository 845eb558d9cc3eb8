"""A recipe's fields are knobs of the run file, checked by their types; what no run file can hold is said."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.schema import Knob, RecipeConfig
from harness.recipes.base import load_recipe

FILE = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import Meta

from harness.recipes.digits import Digits


@dataclass(frozen=True)
class Mine(Digits):
    share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    sizes: tuple[int, ...] = (1, 2)
    more: Literal["none"] | Sequence[float] = "none"
    kind: Literal["small", "large"] = "small"
    place: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Unclear(Digits):
    place: torch.device | torch.dtype = torch.float32
"""


@pytest.fixture
def use(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return f"{tmp_path}/mine.py:"


def test_fields_take_what_their_types_allow(use: str) -> None:
    recipe = load_recipe(RecipeConfig(use=use + "Mine", knobs={"share": 1, "sizes": [3], "kind": "large"}))
    fields = vars(recipe)
    assert (fields["share"], fields["sizes"], fields["kind"]) == (1.0, (3,), "large")
    assert isinstance(fields["share"], float)


@pytest.mark.parametrize(
    ("kind", "knobs", "line"),
    [
        ("Mine", {"share": 1.5}, "recipe.share: is 1.5; it must be <= 1"),
        ("Mine", {"sizes": [1, "x"]}, "recipe.sizes.1: is 'x'; give a whole number"),
        ("Mine", {"more": [1, "x"]}, "recipe.more.1: is 'x'; give a number"),
        ("Mine", {"kind": "huge"}, "recipe.kind: is 'huge'; choose small or large"),
        ("Mine", {"shape": 1}, "recipe.shape: is 1, but Mine has no such field; did you mean share?"),
        ("Mine", {"place": "cpu"}, "recipe.place: is 'cpu'; give a device, which a run file cannot express"),
        ("Unclear", {}, "recipe.use: .*: a field has a type no run file can hold"),
    ],
)
def test_a_knob_that_does_not_fit_is_one_line(use: str, kind: str, knobs: dict[str, Knob], line: str) -> None:
    with pytest.raises(UserError, match=line):
        load_recipe(RecipeConfig(use=use + kind, knobs=knobs))


HASHED = """
from dataclasses import dataclass
from enum import Enum

from harness.recipes.digits import Digits


class Side(Enum):
    LEFT = "left"


@dataclass(frozen=True)
class Inner:
    size: int = 1
    inner: "Inner | None" = None


@dataclass(frozen=True)
class Hashed(Digits):
    parts: tuple[Inner, ...] = ()
    side: Side = Side.LEFT
"""


def test_nothing_is_left_on_a_recipe_s_classes(tmp_path: Path) -> None:
    """`datasets` pickles a recipe whose method is mapped, by value where it cannot be imported, to know a result it has already."""
    (tmp_path / "hashed.py").write_text(HASHED)
    knobs: dict[str, Any] = {"parts": [{"size": 2, "inner": {"size": 3}}], "side": "left"}
    recipe = load_recipe(RecipeConfig(use=f"{tmp_path}/hashed.py:Hashed", knobs=knobs))
    module = sys.modules[type(recipe).__module__]
    for kind in (vars(module)[name] for name in ("Hashed", "Inner", "Side")):
        assert "__msgspec_cache__" not in vars(kind)
    assert pickle.loads(pickle.dumps(recipe)) == recipe, "as a data worker hands its batches over"  # noqa: S301
