"""Worker of test_verify: five bugs, planted one after the other in this process alone, and what `verify` finds of each."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import harness.data.training_order
import harness.engine.ddp
from harness.config.loader import decode
from harness.data.feed import Micro
from harness.distributed.process_group import join, leave
from harness.engine.device_scalars import Number
from harness.engine.gradients import Gradients
from harness.engine.loss_sums import LossSums
from harness.engine.passes import Sums
from harness.engine.training_engine import TrainingEngine
from harness.plan.world import World, place
from harness.recipes.base import Sum
from harness.recipes.bytes_lm import BytesLM
from harness.recipes.digits import Digits
from harness.supervision.exit_codes import end_orderly
from harness.tools.verify import verify


@dataclass(frozen=True)
class Normed(Digits):
    """Digits with a BatchNorm that takes its statistics from each rank's own pass."""

    def model(self) -> nn.Module:
        """float [n, 1, 8, 8] -> logits [n, 10]."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@dataclass(frozen=True)
class Mean(BytesLM):
    """A recipe that returns a mean, and calls it one item."""

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """The mean over the bytes of the pass."""
        total, count = super().loss(model, batch)
        return total / count, 1


@dataclass(frozen=True)
class Weighted(Digits):
    """Digits whose classes weigh unequally: the count is a sum of weights, which rounds otherwise in another order."""

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Cross-entropy by class weight, and the sum of the weights."""
        weight = torch.linspace(0.1, 1.3, 10, device=batch["label"].device)
        total = nn.functional.cross_entropy(model(batch["image"]), batch["label"], weight.to(batch["image"]), reduction="sum")
        return total, weight[batch["label"]].sum()


@contextmanager
def patched(owner: Any, name: str, to: Callable[[Any], Any]) -> Iterator[None]:
    """Put `to(what was there)` in place of an attribute for a while."""
    real = getattr(owner, name)
    setattr(owner, name, to(real))
    try:
        yield
    finally:
        setattr(owner, name, real)


def mean_per_rank(real: Any) -> Any:
    """Each pass's loss is divided by the count of its own items."""

    def of(*args: Any) -> tuple[Tensor, Tensor]:
        total, sums = real(*args)
        count = sums[1].clamp(min=1)  # a pass that only fills up has none
        return total / count, torch.stack([sums[0] / count, (sums[1] > 0).to(sums), sums[2]])

    return of


def step_per_process(real: Any) -> Any:
    """The schedule moves once per process: a prepared scheduler of Accelerate's."""

    def step(self: TrainingEngine, micros: Sequence[Micro], lr: float, *args: Any, **options: Any) -> None:
        number = micros[0].chunk.start // self.plan.global_batch
        real(self, micros, self.plan.lr(number * self.processes), *args, **options)

    return step


def full_count(real: Any) -> Any:
    """A short step's gradient is divided as if it had all its passes."""

    def reduce(self: Gradients, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        sums, norm, scale = real(self, grads, local)
        full = self.plan.global_batch
        return sums, norm, scale * (sums[1] / full if sums[1] < full else 1.0)

    return reduce


def own_shuffle(real: Any) -> Any:
    """Each rank shuffles with a seed of its own."""
    return lambda n, seed, config: real(n, seed + int(os.environ.get("RANK", "0")), config)


PLANTS: dict[str, tuple[str, Any, str, Any]] = {
    "mean loss per rank": ("bytes_lm", LossSums, "of", mean_per_rank),
    "scheduler per process": ("digits", TrainingEngine, "step", step_per_process),
    "short window": ("digits", harness.engine.ddp.DdpAllReduce, "reduce", full_count),
    "wrong shuffle": ("digits", harness.data.training_order, "_order", own_shuffle),
}
TEXT = {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 32, "max_bytes": 12_000}
RECIPES: dict[str, dict[str, Any]] = {
    "bytes_lm": TEXT,
    "digits": {"use": "digits", "width": 4},
    "normed": {"use": f"{__file__}:Normed"},
    "mean": TEXT | {"use": f"{__file__}:Mean"},
    "weighted": {"use": f"{__file__}:Weighted"},
    "dropout": {"use": "digits", "width": 4, "dropout": 0.3},
}


def found(recipe: str, **sections: Any) -> list[dict[str, Any]]:
    """What verify finds of a run of this recipe on the ranks that are here."""
    tree = {
        "recipe": RECIPES[recipe],
        "batch": {"reference": 16, "total": 32, "micro": 8},
        "optim": {"lr": 0.05, "momentum": 0.9, "clip": 5.0},
        "scaling": {"warmup_samples": 320},
        "schedule": {"samples": 960, "shape": "cosine"},
        "watch": {"wandb": "off"},
    }
    here = place(os.environ)
    return [asdict(f) for f in verify(decode(tree | sections), World(here.size, 1, "cpu", here.size), cpu=True)]


def main(out: Path) -> None:
    """All cases; rank 0 writes {case: findings}."""
    torch.set_num_threads(1)
    join(cpu=True)
    results = {f"clean {name}": found(name) for name in ("bytes_lm", "digits", "normed", "mean", "dropout", "weighted")}
    results["clean fsdp"] = found("bytes_lm", backend={"name": "fsdp"}, precision="fp64")
    results["clean zero2"] = found("bytes_lm", backend={"name": "zero2"}, optim={"name": "adamw", "lr": 3e-3})
    for name, (recipe, owner, attribute, plant) in PLANTS.items():
        with patched(owner, attribute, plant):
            results[name] = found(recipe)
    if place(os.environ).rank == 0:
        out.write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
