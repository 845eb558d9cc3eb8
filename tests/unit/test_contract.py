"""A recipe's methods are checked once, at the start: one line says which method gave what, and what it must give."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import IterableDataset, TensorDataset

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split
from harness.telemetry.events import Ended, Evaluated, Event, Noticed, Stepped
from harness.training.loop import train

ROWS = 24
FIRST = int(Order(ROWS, derive(0, 3)).take(0, 1)[0])
"""The sample that is read first."""


def biased(bias: float) -> nn.Module:
    """[n, 4] -> [n, 1], with that bias."""
    line = nn.Linear(4, 1)
    nn.init.constant_(line.bias, bias)
    return line


class Stream(IterableDataset[dict[str, Tensor]]):
    """Samples without numbers, though with a length."""

    def __len__(self) -> int:
        return ROWS

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield {"x": torch.zeros(4), "y": torch.zeros(())}


@dataclass(frozen=True)
class Odd(Recipe):
    """Linear regression, with one method at a time gone wrong."""

    loss_gives: str = "sum"
    model_gives: str = "linear"
    data_gives: str = "table"
    valid_gives: str = "table"
    optimizer_gives: str = "none"
    score_gives: str = ""

    def model(self) -> Any:
        """[n, 4] -> [n, 1]."""
        line = nn.Linear(4, 1)
        return {
            "linear": line,
            "dropout": nn.Sequential(nn.Dropout(0.5), line),
            "norm": nn.Sequential(nn.BatchNorm1d(4), line),
            "lazy": nn.LazyLinear(1),
            "pair": (line, None),
            "none": None,
            "sync": nn.Sequential(line, nn.SyncBatchNorm(1)),
            "frozen": nn.Linear(4, 1).requires_grad_(False),
            "meta": nn.Linear(4, 1, device="meta"),
            "nan": biased(float("nan")),
            "infinite": biased(float("inf")),
            "sparse": nn.EmbeddingBag(10, 1, sparse=True),
        }[self.model_gives]

    def data(self, split: Split) -> Any:
        """A few rows."""
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(int(split == "train")))
        columns = {"x": x, "y": x.sum(1), "z": torch.arange(ROWS)}
        gives = self.data_gives if split == "train" else self.valid_gives
        return {
            "table": Table(columns),
            "rows": [{name: column[i] for name, column in columns.items()} for i in range(ROWS)],
            "empty": Table({name: column[:0] for name, column in columns.items()}),
            "none": None,
            "dict": columns,
            "pair": (x, x.sum(1)),
            "stream": Stream(),
            "class": TensorDataset,
            "iterator": iter([columns]),
        }[gives]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """Squared error."""
        if self.model_gives == "sparse" or self.loss_gives == "lookup":
            tokens = batch["x"].abs().long().clamp(max=9)
            weight = torch.ones(10, 1).requires_grad_()
            out = model(tokens) if self.model_gives == "sparse" else nn.functional.embedding(tokens, weight, sparse=True)[:, 0]
        else:
            out = model(batch["x"])
        each = (out.squeeze(1) - batch["y"]).square()
        total, n = each.sum(), len(each)
        weight = torch.where(batch["z"] % 2 == 0, 1.0, 3.0)
        noise = each.detach() * torch.rand(n) * 2
        return {
            "sum": (total, n),
            "list": [total, torch.tensor(float(n))],
            "lookup": (total, n),
            "alone": each.mean(),
            "dict": {"loss": total},
            "three": (total, n, 1),
            "none": None,
            "item": (total.item(), n),
            "vector": (each, n),
            "whole": (total.long(), n),
            "detached": (total.detach(), n),
            "bool": (total, True),
            "bools": (total, (each > -1).all()),
            "text": (total, "8"),
            "counts": (total, torch.ones(n)),
            "negative": (total, torch.tensor(-n)),
            "learned": (total, out.square().sum()),
            "negative_int": (total, -n),
            "mean": (each.mean(), n),
            "weighted_mean": ((each * weight).sum() / weight.sum(), n),
            "mean_of_passes": (each.mean(), 1),
            "random": (total + noise.sum(), n),
            "routed": (total / (2 if n == 4 and FIRST in batch["z"] else 1), n),
        }[self.loss_gives]

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """What is predicted."""
        given: dict[str, Any] = {"": {}, "list": [1], "flat": {"a": torch.tensor(1.0)}}
        return given[self.score_gives] if self.score_gives in given else {"out": model(batch["x"]), "z": batch["z"]}

    def score(self, outputs: dict[str, Tensor]) -> Any:
        """The largest row, and whether the rows are in order."""
        if not outputs:
            return {}
        if self.score_gives == "short" and len(outputs["z"]) < ROWS:
            raise ValueError("one class alone")
        ordered = float(torch.equal(outputs["z"], torch.arange(len(outputs["z"]))))
        return {"tensor": torch.zeros(2), "rows": {"per_class": outputs["out"]}}.get(self.score_gives, {"ordered": ordered})

    def optimizer(self, model: nn.Module, plan: Plan) -> Any:
        """One, or what people give instead."""
        own = SGD(model.parameters(), lr=0.1)
        found: dict[str, Any] = {"none": None, "list": [own], "empty": [], "dict": {"optimizer": own}, "class": SGD, "own": own}
        return found[self.optimizer_gives]


@dataclass(frozen=True)
class OddMetrics(Odd):
    """With metrics of its own."""

    metrics_give: str = "nothing"

    def metrics(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        """The loss, and more."""
        n = len(batch["x"])
        good = ((model(batch["x"]).squeeze(1) - batch["y"]).square().sum(), n)
        if self.metrics_give == "by_class":
            return {"loss": good} | {f"of_{z}": (torch.tensor(float(z)), 1) for z in sorted({z // 8 for z in batch["z"].tolist()})}
        return {
            "nothing": {"loss": good, "never": (torch.tensor(0), 0)},
            "matrix": {"loss": good, "confusion": (torch.zeros(10, 10), n)},
            "mean": {"loss": good, "accuracy": torch.tensor(0.5)},
            "pair": (good, good),
            "no_loss": {"error": good},
            "bool": {"loss": good, "right": (torch.tensor(1.0), torch.tensor(data=True))},
        }[self.metrics_give]


def told(over: dict[str, Any] | None = None, /, folder: Path | None = None, **knobs: Any) -> list[Event]:
    """All that a run of six steps tells."""
    return list(telling(over, folder, **knobs))


def telling(over: dict[str, Any] | None = None, /, folder: Path | None = None, **knobs: Any) -> Iterator[Event]:
    """The same, one event after the other; the first is that the run has started."""
    tree = {
        "recipe": {"use": f"{__file__}:{'OddMetrics' if 'metrics_give' in knobs else 'Odd'}", **knobs},
        "batch": {"reference": 8, "total": 8, "micro": 4},
        "optim": {"lr": 0.01},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 48},
        "watch": {"wandb": "off"},
    }
    c = decode(tree | (over or {}))
    return train(c, plan(c, World(1, device="cpu")), cpu=True, folder=folder)


LOSS = "give (sum, count): the summed loss as a scalar tensor with a gradient, and the number of items in it"
COUNT = "give the number of items"


@pytest.mark.parametrize(
    ("gives", "line"),
    [
        ("alone", f"loss() gave a Tensor of shape [] and type float32; {LOSS}"),
        ("dict", f"loss() gave a dict of 1; {LOSS}"),
        ("three", f"loss() gave a tuple of 3; {LOSS}"),
        ("none", f"loss() gave None; {LOSS}"),
        ("item", f"loss() gave a float as the sum (.item() cuts it off from the model); {LOSS}"),
        ("vector", f"loss() gave a Tensor of shape [4] and type float32 as the sum; {LOSS}"),
        ("whole", f"loss() gave a Tensor of shape [] and type int64 as the sum; {LOSS}"),
        ("bool", f"loss() gave a bool as the count; {COUNT}"),
        ("bools", f"loss() gave a Tensor of shape [] and type bool as the count; {COUNT}"),
        ("text", f"loss() gave a str as the count; {COUNT}"),
        ("counts", f"loss() gave a Tensor of shape [4] and type float32 as the count; {COUNT}"),
        ("learned", "loss() gave a count with a gradient, which would be lost"),
        ("negative", f"loss() gave -4 as the count; {COUNT}"),
        ("negative_int", f"loss() gave -4 as the count; {COUNT}"),
        ("detached", "loss() gave a sum without a gradient: it was detached"),
        ("lookup", "loss() leads to sparse gradients (an embedding with sparse=True), which are not supported"),
        ("mean", "for its halves: a mean, not a sum; give the sum, as with reduction"),
        ("weighted_mean", "for its halves: a mean, not a sum"),
    ],
)
def test_a_loss_that_is_no_sum_and_count_is_one_line(gives: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        told(loss_gives=gives)
    assert line in str(caught.value)
    assert str(caught.value).startswith("recipe.use: loss() ")


def test_what_may_be_a_sum_and_count_trains() -> None:
    """Also a loss that draws random numbers, of which nothing can be told; one whose terms hang on the rest of the batch, and look
    like a mean where the first sample is in it; and dropout, which a look in eval mode leaves out."""
    losses = {gives: told(loss_gives=gives)[-1] for gives in ("sum", "list", "mean_of_passes", "random", "routed")}
    assert all(isinstance(end, Ended) and end.reason == "complete" for end in losses.values())
    assert losses["sum"] == losses["list"]
    end = told(model_gives="dropout")[-1]
    assert isinstance(end, Ended)
    assert end.reason == "complete"


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"model_gives": "pair"}, "model() gave a tuple of 2; give one nn.Module"),
        ({"model_gives": "none"}, "model() gave None; give one nn.Module"),
        ({"model_gives": "lazy"}, "model() has parameters without a shape (weight, bias); give lazy modules their sizes"),
        ({"model_gives": "frozen"}, "model() has no parameter that is trained"),
        ({"model_gives": "meta"}, "model() has tensors without contents, on the meta device (weight, bias); make them on the CPU"),
        ({"model_gives": "nan"}, "model() has trained weights that are not finite (bias); "),
        ({"model_gives": "infinite"}, "model() has trained weights that are not finite (bias); "),
        ({"model_gives": "sync"}, "model() has a SyncBatchNorm (1), and torch has none for the CPU; make it a BatchNorm"),
        ({"model_gives": "sparse"}, "loss() leads to sparse gradients"),
        ({"optimizer_gives": "list"}, "optimizer() gave a list of 1; give one torch.optim.Optimizer"),
        ({"optimizer_gives": "empty"}, "optimizer() gave a list of 0; give one torch.optim.Optimizer"),
        ({"optimizer_gives": "dict"}, "optimizer() gave a dict of 1"),
        ({"optimizer_gives": "class"}, "optimizer() gave the class SGD"),
        ({"data_gives": "stream"}, 'data("train") gave a Stream; give a Table, or a data set with len() and [i]'),
        ({"data_gives": "iterator"}, 'data("train") gave a list_iterator; give a Table'),
        ({"data_gives": "class"}, 'data("train") gave the class TensorDataset; give a Table'),
        ({"data_gives": "dict"}, 'data("train") gave a dict of 3; give a Table of these columns'),
        ({"data_gives": "pair"}, 'data("train") gave a tuple of 2; give a Table of these columns'),
        ({"data_gives": "none"}, 'data("train") gave None'),
        ({"data_gives": "empty"}, 'data("train") is empty'),
        ({"valid_gives": "empty"}, 'data("valid") is empty; give it samples, or return None to train without validation'),
        ({"valid_gives": "iterator"}, 'data("valid") gave a list_iterator'),
        ({"metrics_give": "matrix"}, "metrics() for 'confusion' gave a Tensor of shape [10, 10]"),
        ({"metrics_give": "mean"}, "metrics() for 'accuracy' gave a Tensor of shape [] and type float32; give (sum, count)"),
        ({"metrics_give": "pair"}, "metrics() gave a tuple of 2; give a dict of (sum, count) by name"),
        ({"metrics_give": "no_loss"}, "metrics() gave error, and no 'loss'"),
        ({"metrics_give": "bool"}, "metrics() for 'right' gave a Tensor of shape [] and type bool as the count"),
        ({"score_gives": "list"}, "outputs() gave a list of 1; give a dict of tensors [n, ...]"),
        ({"score_gives": "flat"}, "outputs() for 'a' gave a Tensor of shape []"),
        ({"score_gives": "tensor"}, "score() gave a Tensor of shape [2]"),
        ({"score_gives": "rows"}, "score() for 'per_class' gave a Tensor of shape [4, 1]"),
    ],
)
def test_each_other_method_is_told_by_name_before_the_first_step(knobs: dict[str, Any], line: str) -> None:
    seen = list[Event]()
    with pytest.raises(UserError) as caught:
        seen.extend(telling(**knobs))
    assert line in str(caught.value)
    assert not any(isinstance(e, Stepped) for e in seen)


@pytest.mark.parametrize("knobs", [{}, {"metrics_give": "nothing"}, {"score_gives": "ordered"}])
def test_a_metric_that_the_recipe_does_not_give_is_told_before_the_first_step(knobs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"eval.metric: the recipe gives no eval/los; did you mean eval/loss\?"):
        next(telling({"eval": {"metric": "eval/los"}}, **knobs))


def test_a_metric_that_some_batches_lack_counts_nothing_there() -> None:
    end = told(metrics_give="by_class")[-1]
    assert [end.metrics[f"eval/of_{z}"] for z in range(ROWS // 8)] == [0, 1, 2]  # type: ignore[union-attr]


def test_a_run_without_validation_trains_and_says_so_once(tmp_path: Path) -> None:
    events = told(folder=tmp_path, valid_gives="none")
    assert [e.code for e in events if isinstance(e, Noticed)] == ["no_validation"]
    assert not any(isinstance(e, Evaluated) for e in events)
    end = events[-1]
    assert isinstance(end, Ended)
    assert (end.reason, len([e for e in events if isinstance(e, Stepped)])) == ("complete", 6)
    assert len(list(tmp_path.glob("checkpoints/samples-*"))) == 1


@pytest.mark.parametrize(
    "over",
    [
        {"eval": {"every_samples": 16}},
        {"eval": {"patience_samples": 16}},
        {"eval": {"metric": "eval/accuracy"}},
        {"eval": {"sharpness": 8}},
        {"checkpoint": {"keep_best": 1}},
        {"schedule": {"samples": 48, "shape": "plateau", "every": 16}},
    ],
)
def test_without_validation_what_asks_for_it_is_refused(over: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'is .*, but data\("valid"\) is None; leave it out, or give the recipe validation data'):
        next(telling(over, valid_gives="none"))


@pytest.mark.parametrize("gives", ["table", "rows"])
def test_a_score_sees_all_rows_in_the_order_of_the_data(gives: str) -> None:
    """Also where a part of the split, which is looked at before training, has none."""
    for score in ("ordered", "short"):
        end = told({"eval": {"metric": "eval/ordered", "better": "higher"}}, valid_gives=gives, score_gives=score)[-1]
        assert isinstance(end, Ended)
        assert end.metrics["eval/ordered"] == 1


def test_what_is_looked_at_before_training_changes_nothing_of_it() -> None:
    """Weights, buffers and the order of samples: the losses are those of a loop by hand."""
    losses = [e.metrics["train/loss"] for e in told(model_gives="norm") if isinstance(e, Stepped)]
    from harness.data.seeding import MODEL, ORDER, seed_all

    recipe = Odd(model_gives="norm")
    seed_all(derive(0, MODEL))
    model, data = recipe.model(), recipe.data("train")
    order, optimizer = Order(ROWS, derive(0, ORDER)), SGD(model.parameters(), lr=0.01)
    for step, loss in enumerate(losses):
        batches = [data.take(torch.from_numpy(order.take(at, at + 4))) for at in (step * 8, step * 8 + 4)]
        by_hand = sum(recipe.loss(model, batch)[0] for batch in batches) / 8
        optimizer.zero_grad()
        by_hand.backward()
        optimizer.step()
        assert loss == pytest.approx(by_hand.item(), rel=1e-5)
