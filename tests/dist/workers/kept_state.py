"""State beside tensors. As a program on ranks: `python -m tests.dist.workers.kept_state FOLDER` trains, stops, and continues."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.distributed.process_group import agree, join, leave
from harness.plan.plan import Plan, plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Noticed, Stepped
from harness.training.loop import train

ROWS = 64


class Anneal(nn.Linear):
    """Its output grows with the number of training passes that it has seen; it keeps that and more by torch's protocol."""

    def __init__(self) -> None:
        super().__init__(4, 16)
        self.seen, self.last = 0, torch.zeros((), dtype=torch.float64)

    def get_extra_state(self) -> Any:
        """Plain data and a tensor."""
        return {"seen": self.seen, "more": (1, [None, 2.5, "three"]), "last": self.last, 4: True}

    def set_extra_state(self, state: Any) -> None:
        """The same."""
        assert state["more"] == (1, [None, 2.5, "three"])
        assert state[4] is True
        self.seen, self.last = state["seen"], state["last"]

    def forward(self, x: Tensor) -> Tensor:
        """[n, 4] -> [n, 16]."""
        if self.training and not x.is_meta:
            self.seen += 1
            self.last = self.last / 3 + 1
        return super().forward(x) * min(self.seen / 8, 1.0) * float(self.last)


class Counting(Optimizer):
    """Decays by what it keeps in every place that there is: state, groups and itself; numbers, flags, and a tensor in float64."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr, "scale": 1.0, "calls": 0, "even": True, "window": (1, 2), "share": None})
        self.total = 0.0

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step."""
        self.total = self.total / 3 + 0.1
        for group in self.param_groups:
            group["calls"] += 1
            group["scale"] *= 0.9
            group["even"] = not group["even"]
            group["window"] = (group["window"][1], group["calls"])
            group["share"] = 1 / group["calls"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"rate": 1.0, "count": 0, "odd": False, "precise": torch.ones((), dtype=torch.float64)}
                state["rate"] = state["rate"] / 3 + 1
                state["count"] += 1
                state["odd"] = not state["odd"]
                state["precise"] = state["precise"] / 3 + 1
                by = group["scale"] * state["rate"] * float(state["precise"]) * (1 + self.total) * (0.9 if state["odd"] else 1.0)
                by *= 1 + group["share"] / 10 + group["window"][0] / 100 + state["count"] / 100 + group["even"] / 10
                with torch.no_grad():
                    p.add_(p.grad, alpha=-group["lr"] * by)


class Silent(Optimizer):
    """Keeps what it keeps where nobody sees it."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step."""
        for p in self.param_groups[0]["params"]:
            p.data.add_(p.grad, alpha=-self.param_groups[0]["lr"])


@dataclass(frozen=True)
class Kept(Recipe):
    """Regression, with an optimizer of its own."""

    kind: str = "prodigy"

    def model(self) -> nn.Module:
        """[n, 4] -> [n, 1]."""
        first = Anneal() if self.kind in ("extra", "counting") else nn.Linear(4, 16)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(16, 1))

    def optimizer(self, model: nn.Module, plan: Plan) -> Optimizer | None:
        """By `kind`."""
        weights, lr = model.parameters(), plan.lr(0)
        if self.kind == "lookahead":
            found: Optimizer = pytorch_optimizer.Lookahead(torch.optim.SGD(weights, lr=lr))
            return found
        kinds: dict[str, Callable[..., Optimizer]] = {
            "prodigy": lambda w, lr: pytorch_optimizer.Prodigy(w, lr=lr, d0=1e-3),
            "schedulefree": pytorch_optimizer.ScheduleFreeAdamW,
            "counting": Counting,
            "silent": Silent,
        }
        return kinds[self.kind](weights, lr=lr) if self.kind in kinds else None

    def data(self, split: Split) -> Table:
        """64 rows."""
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1 + (split == "train")))
        return Table({"x": x, "y": x.sum(1)})

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error."""
        return (model(batch["x"]).squeeze(1) - batch["y"]).square().sum(), len(batch["x"])


RATES = {"prodigy": 1.0, "schedulefree": 0.05, "counting": 0.002, "extra": 0.02, "silent": 0.02, "lookahead": 0.02}


def tree(kind: str) -> dict[str, Any]:
    """The run file of a kind."""
    return {
        "recipe": {"use": f"{__file__}:Kept", "kind": kind},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "adamw", "lr": RATES[kind]},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 160},
        "eval": {"every_samples": 32},
        "watch": {"wandb": "off", "every_steps": 1},
    }


def run(kind: str, folder: Path | None, stop: int | None = None, **sections: Any) -> dict[str, Any]:
    """Losses of the steps, the last evaluation's, notices about state, and the refusal, of a run on the ranks that are here."""
    config, here = decode(tree(kind) | {"run": {"stop_after_steps": stop}} | sections), place(os.environ)
    told, refused = [], ""
    try:
        for event in train(config, plan(config, World(here.size, 1, "cpu", here.size), ROWS), cpu=True, folder=folder):
            told.append(event)  # noqa: PERF402  what came before an error is kept
    except UserError as e:
        refused = str(e)
    return {
        "losses": [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)],
        "eval": [e.metrics["eval/loss"] for e in told if isinstance(e, Evaluated)],
        "notices": [e.message for e in told if isinstance(e, Noticed) and e.code == "optimizer"],
        "refused": refused,
    }


BACKENDS = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
KINDS = ("prodigy", "schedulefree", "counting", "extra")


def halves(kind: str, folder: Path, **sections: Any) -> dict[str, Any]:
    """A run as a whole, and one that stops after 10 of 20 steps and continues."""
    agree("")
    whole = run(kind, None, **sections)
    first = run(kind, folder, 10, **sections)
    agree("")
    then = run(kind, folder, **sections) if not first["refused"] else first
    return {"whole": whole, "first": first, "then": then}


def main(out: Path) -> None:
    """All kinds on all backends; rank 0 writes."""
    torch.set_num_threads(1)
    join(cpu=True)
    found = {}
    for backend in BACKENDS:
        for kind in KINDS:
            found[f"{kind} {backend}"] = halves(kind, out / f"{kind}-{backend}", backend={"name": backend})
    if place(os.environ).rank == 0:
        (out / "found.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
