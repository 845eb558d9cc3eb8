"""optim.name: file.py:Class gets the plan's rate and decay, and resumes exactly; what is no optimizer is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.schema import Config
from harness.plan.plan import plan
from harness.plan.world import World
from harness.supervision.folder_seal import foreign
from harness.telemetry.events import Stepped
from harness.training.loop import train

CODE = '''
import torch


class Heavy(torch.optim.Optimizer):
    """Momentum written by hand."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, momentum=0.9):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("kept", torch.zeros_like(p))
                    kept.mul_(group["momentum"]).add_(p.grad + group["weight_decay"] * p)
                    p.sub_(group["lr"] * kept)


not_one = dict
'''
WORLD = World(1, device="cpu")


def run_file(tmp_path: Path, name: str = "own.py:Heavy", **over: Any) -> Config:
    """Ten steps of digits by an optimizer beside the run file."""
    (tmp_path / "own.py").write_text(CODE)
    optim = {"name": name, "lr": 0.02, "weight_decay": 0.001} | over.pop("optim", {})
    tree = {"recipe": "{use: digits, width: 4}", "batch": "{reference: 32, total: 32}", "schedule": "{samples: 320}"} | over
    lines = [f"{section}: {text}" for section, text in (tree | {"optim": str(optim).replace("'", "")}).items()]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "watch: {wandb: off}"]))
    return load(tmp_path / "run.yaml")


def losses(c: Config, folder: Path) -> list[float]:
    """The losses of the steps of a run."""
    return [e.metrics["train/loss"] for e in train(c, plan(c, WORLD, 1437), cpu=True, folder=folder) if isinstance(e, Stepped)]


def test_it_trains_as_torch_s_own_and_resumes_exactly(tmp_path: Path) -> None:
    own, known = run_file(tmp_path), run_file(tmp_path, "sgd", optim={"momentum": 0.9})
    whole = losses(own, tmp_path / "whole")
    assert whole == pytest.approx(losses(known, tmp_path / "known"), rel=1e-5)
    first = losses(replace(own, run=replace(own.run, stop_after_steps=4)), tmp_path / "parts")
    assert first + losses(own, tmp_path / "parts") == whole


def test_at_another_batch_it_wants_a_rule(tmp_path: Path) -> None:
    batch = {"batch": "{reference: 32, total: 64}"}
    with pytest.raises(UserError, match=r"scaling\.rule"):
        plan(run_file(tmp_path, **batch), WORLD, 1437)
    assert plan(run_file(tmp_path, **batch, scaling="{rule: sqrt}"), WORLD, 1437).target_lr == pytest.approx(0.02 * 2**0.5)


@pytest.mark.parametrize(
    ("name", "over", "match"),
    [
        ("own.py:not_one", {}, r"optim\.name: .*own\.py:not_one is not a subclass of torch\.optim\.Optimizer"),
        ("own.py:Light", {}, r"optim\.name: .* has no 'Light'; known: torch, Heavy"),
        ("none.py:Heavy", {}, r"optim\.name: .* no file"),
        ("own.py:Heavy", {"backend": "{name: zero2}"}, r"optim\.name: is .*Heavy"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, name: str, over: dict[str, Any], match: str) -> None:
    c = run_file(tmp_path, name, **over)
    with pytest.raises(UserError, match=match):
        losses(c, tmp_path / "run")


def test_a_run_folder_that_names_one_is_asked_for_trust(tmp_path: Path) -> None:
    assert foreign(run_file(tmp_path)) == {"optim.name": f"{tmp_path / 'own.py'}:Heavy"}
