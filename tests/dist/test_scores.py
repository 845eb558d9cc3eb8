"""Metrics over all predictions are the same on any layout: each row once, in the order of the data. Rank 0 makes the data first."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from harness.config.loader import decode
from harness.data.feed import Table
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum
from harness.telemetry.events import Ended
from harness.training.loop import train
from tests.support.processes import run_ranks

VALID = 61
"""Validation samples: a number that no layout divides."""


def auc(score: Tensor, label: Tensor) -> float:
    """The share of pairs of a positive and a negative in the right order, ties as half."""
    apart = score[label == 1][:, None] - score[label == 0][None]
    return float((apart > 0).double().mean() + (apart == 0).double().mean() / 2)


@dataclass(frozen=True)
class Ranked(Recipe):
    """Two classes. `log` is where each process writes down when it makes its data."""

    log: str = ""

    def model(self) -> nn.Module:
        """[n, 4] -> [n, 1]."""
        return nn.Linear(4, 1)

    def data(self, split: Split) -> Table:
        """Columns x, y."""
        if self.log:
            import os

            with (Path(self.log) / "built").open("a") as f:
                f.write(f"begin {split} {os.environ['RANK']}\n")
                f.flush()
                f.write(f"end {split} {os.environ['RANK']}\n")
        g = torch.Generator().manual_seed(int(split == "train"))
        x = torch.randn(64 if split == "train" else VALID, 4, generator=g)
        return Table({"x": x, "y": (x.sum(1) + 2 * torch.randn(len(x), generator=g) > 1).float()})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy."""
        return binary_cross_entropy_with_logits(model(batch["x"]).squeeze(1), batch["y"], reduction="sum"), len(batch["x"])

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is predicted, and what is right."""
        return {"score": model(batch["x"]).squeeze(1), "label": batch["y"]}

    def score(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        """AUC over all predictions, and what tells the order and number of rows."""
        at = torch.arange(len(outputs["label"]), dtype=torch.float64)
        return {"auc": auc(outputs["score"], outputs["label"]), "rows": len(at), "order": float((at * outputs["label"]).sum())}


def tree(micro: int, **over: Any) -> dict[str, Any]:
    """Eight steps of 8."""
    return {
        "recipe": {"use": f"{__file__}:Ranked"},
        "batch": {"reference": 8, "total": 8, "micro": micro},
        "optim": {"name": "sgd", "lr": 0.05, "ema": 0.9},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 64},
        "precision": "fp64",
        "eval": {"metric": "eval/auc", "better": "higher"},
        "watch": {"wandb": "off"},
    } | over


def scores(metrics: Any) -> list[float]:
    """The scores of an end, those of the averaged weights too."""
    return [metrics[f"eval/{name}"] for name in ("auc", "rows", "order", "ema_auc")]


def alone(micro: int) -> list[float]:
    """The scores of a run in this process."""
    c = decode(tree(micro))
    *_, end = train(c, plan(c, World(1, device="cpu")), cpu=True)
    assert isinstance(end, Ended)
    return scores(end.metrics)


def test_a_score_is_the_same_however_the_split_is_cut_and_on_two_ranks(tmp_path: Path) -> None:
    whole = alone(8)
    valid = Ranked().data("valid").columns["y"]
    assert whole[1:3] == [VALID, float((torch.arange(VALID) * valid).sum())]
    assert 0 < whole[0] < 1
    for micro in (2, 4):
        assert alone(micro) == pytest.approx(whole, rel=1e-12)
    own = {"recipe": {"use": f"{__file__}:Ranked", "log": str(tmp_path)}, "run": {"dir": str(tmp_path / "run")}}
    (tmp_path / "run.yaml").write_text(json.dumps(tree(2, **own)))
    run_ranks(2, ["harness", str(tmp_path / "run.yaml")], tmp_path)
    end = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert scores(end) == pytest.approx(whole, rel=1e-12)
    built = (tmp_path / "built").read_text().split("\n")[:-1]
    for split in ("train", "valid"):
        order = [line for line in built if f" {split} " in line]
        assert order == [f"{what} {split} {rank}" for rank in (0, 1) for what in ("begin", "end")], "rank 0 makes it first"
