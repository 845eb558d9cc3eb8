"""Sources mixed by weights, in one order on any world; and validation sets by name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import RecipeConfig
from harness.data.columns import Table
from harness.data.feed import Data
from harness.data.joined import joined, mixture
from harness.data.mixed_order import MixedOrder, pattern, shares
from harness.data.sample_order import Order, step_shards
from harness.data.training_order import training_order
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.recipes.fingerprint import fingerprint
from harness.telemetry.events import Evaluated, Event, Stepped, Windowed
from harness.training.loop import train

SIZES = (30, 50, 7)


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_each_source_has_its_share_of_every_prefix_to_within_one_sample(counts: list[int]) -> None:
    chosen, period = pattern(counts), sum(counts)
    for number, count in enumerate(counts):
        had = np.cumsum(chosen == number)
        assert np.abs(had - np.arange(1, period + 1) * count / period).max() < 1
        assert had[-1] == count


def test_weights_are_exact_and_what_makes_no_order_is_refused() -> None:
    assert shares([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert shares([3, 1]) == [3, 1]
    assert shares([0.123, 0.877]) == [123, 877]
    for weights, said in {
        (0.0, 0.0): "recipe.weights: holds 0; give each source a weight above 0",
        (1.0, -1.0): "holds -1",
        (1.0, float("nan")): "holds nan",
        (1.0, 0.1234567): "repeat only after 11,234,567 samples; round them",
    }.items():
        with pytest.raises(UserError, match=said):
            shares(weights)


def mixed(weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> MixedOrder:
    """Three small sources."""
    return MixedOrder([Order(size, number) for number, size in enumerate(SIZES)], weights)


def test_each_source_goes_through_its_own_epochs_and_every_sample_is_found_again() -> None:
    order = mixed()
    stream = order.take(0, 1000)
    first = np.cumsum([0, *SIZES])
    for number, size in enumerate(SIZES):
        mine = stream[(stream >= first[number]) & (stream < first[number + 1])] - first[number]
        assert mine.tolist() == Order(size, number).take(0, len(mine)).tolist()
        assert order.drawn(1000)[number] == len(mine)
    for sample in range(0, sum(SIZES), 5):
        assert order.positions(sample, 1000) == np.flatnonzero(stream == sample).tolist()
    pieces = [order.take(start, stop).tolist() for start, stop in ((0, 1), (1, 334), (334, 335), (335, 1000))]
    assert [i for part in pieces for i in part] == stream.tolist(), "however it is read"


def test_weights_change_at_given_samples_and_each_source_goes_on_where_it_was() -> None:
    """Of every number of samples since the last change each source has its share, to within one."""
    stages = [(0, (0.5, 0.3, 0.2)), (333, (0.1, 0.8, 0.1)), (340, (1, 1, 1)), (700, (0.7, 0.2, 0.1))]
    order = MixedOrder([Order(size, number) for number, size in enumerate(SIZES)], stages[0][1], stages[1:])
    stream, first = order.take(0, 1200), np.cumsum([0, *SIZES])
    chosen = np.searchsorted(first, stream, side="right") - 1
    for (start, weights), stop in zip(stages, (333, 340, 700, 1200), strict=True):
        for number, weight in enumerate(weights):
            had = np.cumsum(chosen[start:stop] == number)
            assert np.abs(had - np.arange(1, stop - start + 1) * weight / sum(weights)).max() < 1
    for number, size in enumerate(SIZES):
        mine = stream[chosen == number] - first[number]
        assert mine.tolist() == Order(size, number).take(0, len(mine)).tolist()
        assert [order.drawn(stop)[number] for stop in (0, 333, 340, 1200)] == [
            int((chosen[:stop] == number).sum()) for stop in (0, 333, 340, 1200)
        ]
    for sample in range(0, sum(SIZES), 5):
        assert order.positions(sample, 1200) == np.flatnonzero(stream == sample).tolist()
    pieces = [order.take(start, stop).tolist() for start, stop in ((0, 1), (1, 333), (333, 900), (900, 1200))]
    assert [i for part in pieces for i in part] == stream.tolist(), "however it is read"
    assert stream[:333].tolist() == mixed().take(0, 333).tolist(), "the order before the first change stays"


def test_a_mixture_is_the_same_on_every_world_and_over_resumes() -> None:
    """One, two, four and three ranks, and two, then four, then one."""

    def taken(plan_of: list[tuple[int, int, int]]) -> list[list[int]]:
        steps: list[list[int]] = []
        for start, stop, world in plan_of:
            order = [mixed() for _ in range(world)]
            dealt = [list(step_shards(start, stop, 48, 4, world, rank, world)) for rank in range(world)]
            for parts in zip(*dealt, strict=True):
                chunks = [(c, rank) for rank, shards in enumerate(parts) for c in shards.chunks if not c.padding]
                steps.append(sorted(i for c, rank in chunks for i in order[rank].take(c.start, c.start + c.count).tolist()))
        return steps

    alone = taken([(0, 500, 1)])
    assert all(taken([(0, 500, world)]) == alone for world in (2, 3, 4))
    assert taken([(0, 96, 2), (96, 240, 4), (240, 500, 1)]) == alone


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (
            "20k 1, 1",
            "recipe.weights_then: holds '20k 1, 1'; write .* a weight for each of the 2 sources",
        ),
        ("20: 1", "holds '20: 1'"),
        ("2.5: 1, 1", "holds '2.5: 1, 1'"),
        ("0.0001k: 1, 1", "is '0.0001k', which is 0.1; give a whole number"),
        ("20: 1, 0", "recipe.weights: holds 0"),
    ],
)
def test_changes_of_weights_that_make_no_sense_are_one_line(then: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for name in "ab":
        np.arange(100, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    files = [f"{name}={tmp_path}/{name}.bin" for name in "ab"]
    knobs: dict[str, Any] = {"kind": "gpt2", "data": files, "weights": [1, 1], "weights_then": ["10: 1, 2", then]}
    with pytest.raises(UserError, match=said):
        load_recipe(RecipeConfig(use="tokens", knobs=knobs)).data("train")


@dataclass(frozen=True)
class Lines(Recipe):
    """A line through points of two sources, validated on two sets."""

    kind: str = "table"
    same: bool = False
    ups: int = 3
    """Samples of slope 1 for one of slope -1."""
    alone: bool = False

    def model(self) -> nn.Module:
        """[n, 1] -> [n, 1]."""
        return nn.Linear(1, 1)

    def data(self, split: Split) -> Data | Mapping[str, Data]:
        """Points of slope 1 and of slope -1."""
        if self.alone:
            return self._set(64, 1)
        sizes = (40, 24) if split == "train" else (10, 5)
        sets = {name: self._set(size, sign) for name, size, sign in zip(("up", "down"), sizes, (1, -1), strict=True)}
        if split == "valid":
            return sets if not self.same else {"up": sets["up"], "again": sets["up"]}
        return mixture(sets, {"down": 1, "up": self.ups})

    def _set(self, size: int, sign: int) -> Data:
        x = torch.linspace(-1, 1, size)[:, None]
        table = Table({"x": x, "y": sign * x, "sign": torch.full((size,), sign)})
        return table if self.kind == "table" else [{name: c[i] for name, c in table.columns.items()} for i in range(size)]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error."""
        each = (model(batch["x"]) - batch["y"]).square()
        return each.sum(), len(each)


def run(world: int = 1, over: dict[str, Any] | None = None, **knobs: Any) -> list[Event]:
    """All events of a run of four epochs, by one process."""
    tree: dict[str, Any] = {
        "recipe": {"use": f"{__file__}:Lines", **knobs},
        "batch": {"reference": 8, "total": 8, "micro": 2},
        "optim": {"lr": 0.05},
        "schedule": {"epochs": 4},
        "scaling": {"rule": "none"},
        "precision": "fp64",
        "eval": {"every_epochs": 1, "metric": "eval/down/loss"},
        "watch": {"wandb": "off", "every_steps": 4},
    }
    config = decode(tree | (over or {}))
    return list(train(config, plan(config, World(world, device="cpu", processes=1), 64), cpu=True))


@pytest.mark.parametrize("kind", ["table", "list"])
def test_a_run_on_a_mixture_tells_its_sources_and_evaluates_each_set(kind: str) -> None:
    events = run(kind=kind)
    last = [e.metrics for e in events if isinstance(e, Windowed)][-1]
    assert (last["data/up_samples"], last["data/down_samples"]) == (192, 64)
    assert (last["data/up_epoch"], last["data/down_epoch"]) == (192 / 40, 64 / 24)
    evals = [e for e in events if isinstance(e, Evaluated)]
    assert len(evals) == 4
    for e in evals:
        up, down, both = (e.metrics[f"eval/{name}loss"] for name in ("up/", "down/", ""))
        assert up is not None
        assert down is not None
        assert both == pytest.approx((10 * up + 5 * down) / 15, rel=1e-12)
    ends = [e.metrics["eval/down/loss"] or 0.0 for e in evals]
    assert [e.best for e in evals] == [ends[n] == min(ends[: n + 1]) for n in range(4)]


@pytest.mark.parametrize(("kind", "ups"), [("table", 15), ("list", 3)])
def test_the_losses_of_the_sources_add_up_to_that_of_the_next_step_and_measuring_them_changes_nothing(kind: str, ups: int) -> None:
    """A source that has no sample in the next step has no loss there."""
    watch = {"wandb": "off", "every_steps": 1}
    plain, told = (run(over={"watch": watch | more}, kind=kind, ups=ups) for more in ({}, {"loss_by_source": True}))
    losses = [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)]
    assert losses == [e.metrics["train/loss"] for e in plain if isinstance(e, Stepped)]
    windows = [e.metrics for e in told if isinstance(e, Windowed)]
    assert not any(
        name.endswith("_loss") and name.startswith("data/") for e in plain if isinstance(e, Windowed) for name in e.metrics
    )
    absent = 0
    for now, after, loss in zip(windows, windows[1:], losses[1:], strict=False):
        counts = [(after[f"data/{name}_samples"] or 0) - (now[f"data/{name}_samples"] or 0) for name in ("up", "down")]
        means = [now[f"data/{name}_loss"] for name in ("up", "down")]
        assert [mean is None for mean in means] == [count == 0 for count in counts]
        absent += 0 in counts
        assert sum(count * (mean or 0) for count, mean in zip(counts, means, strict=True)) / 8 == pytest.approx(loss, rel=1e-12)
    assert (absent > 0) == (ups == 15)


def test_losses_by_source_of_what_has_no_sources_is_one_line() -> None:
    with pytest.raises(UserError, match=r"watch.loss_by_source: is true, but the training data is no mixture; leave it out"):
        run(over={"watch": {"wandb": "off", "loss_by_source": True}, "eval": {"every_epochs": 1}}, alone=True)


def test_losses_of_a_mixture_are_the_same_on_simulated_worlds() -> None:
    one, three = ([e.metrics["train/loss"] for e in run(world) if isinstance(e, Stepped)] for world in (1, 2))
    assert three == pytest.approx(one, rel=1e-10)


def test_the_order_of_blocks_mixes_sources_too() -> None:
    config = decode({"batch": {"reference": 8, "total": 8}, "optim": {"lr": 0.1}, "schedule": {"samples": 64}})
    blocks = replace(config, data=replace(config.data, order="blocks", block=8, window=2))
    data = Lines().data("train")
    assert not isinstance(data, Mapping)
    stream = training_order(data, blocks).take(0, 4 * 64)
    assert stream.tolist() != training_order(data, config).take(0, 4 * 64).tolist()
    assert Counter(stream[stream < 40].tolist()[:160]) == Counter(dict.fromkeys(range(40), 4))


def test_the_fingerprint_changes_with_the_weights_and_with_any_source() -> None:
    sets: Any = Lines().data("valid")
    first = fingerprint(Lines(), mixture(sets, {"up": 1, "down": 2}))
    assert fingerprint(Lines(), mixture(sets, {"up": 2, "down": 4})) == first, "their ratios alone count"
    assert fingerprint(Lines(), mixture(sets, {"up": 2, "down": 1})) != first
    assert fingerprint(Lines(), mixture(sets, {"up": 1, "down": 2}, {9: {"up": 1, "down": 1}})) != first
    assert fingerprint(Lines(), mixture(sets | {"up": sets["down"], "down": sets["up"]}, {"up": 1, "down": 2})) != first


def test_what_makes_no_sets_is_one_line() -> None:
    a, b = Table({"x": torch.zeros(3)}), Table({"x": torch.zeros(3, 2)})
    rows: Any = [{"x": torch.zeros(())}] * 3
    cases: list[tuple[Any, Any, str]] = [
        ({"a": a, "b": b}, {"a": 1, "b": 1}, r"the sets a and b differ in their columns \(x float32 \[\], x float32 \[2\]\)"),
        ({"a": a, "b": rows}, {"a": 1, "b": 1}, "the set a is read in columns, other sets sample by sample"),
        ({"a": a}, {"b": 1}, "recipe.weights: name b, and the sources are a; give each source one weight"),
        ({"A b": a}, {"A b": 1}, r"data\(\) names a set 'A b'"),
    ]
    for sets, weights, said in cases:
        with pytest.raises(UserError, match=said):
            mixture(sets, weights)
    for then, said in (({5: {"a": 0}}, "holds 0"), ({5: {"b": 1}}, "name b, and"), ({0: {"a": 1}}, "change at 0 samples")):
        with pytest.raises(UserError, match=f"recipe.weights: {said}"):
            mixture({"a": a}, {"a": 1}, then)
    with pytest.raises(UserError, match=r"eval.metric: the recipe gives no eval/dwn/loss; did you mean eval/down/loss"):
        run(over={"eval": {"every_epochs": 1, "metric": "eval/dwn/loss"}})
    assert joined({"a": a, "b": a}).source(4) == "b 1"
