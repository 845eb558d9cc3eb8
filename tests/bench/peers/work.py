"""The work that every harness of the comparison is given: model, data, order and optimizer, and the loop that a person would write.

`tiny` is a 99 k parameter MLP at batch 64, where a step is a millisecond and the harness itself is what is measured. `real` is a
10 M parameter byte-level GPT. Both as recipes, so that a run file names them: `recipe: {use: tests/bench/peers/work.py:Tiny}`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.data.seeding import MODEL, ORDER
from harness.recipes.base import Recipe, Split, Sum
from harness.recipes.bytes_lm import BytesLM

CLASSES, INPUTS, WIDTH, SAMPLES = 64, 64, 256, 4096
LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.999), 1e-8, 0.0, 1.0
LOG_EVERY = 10
"""Steps from one logged point to the next, in every harness."""


@dataclass(frozen=True)
class Tiny(Recipe):
    """Three linear layers on random numbers with random labels."""

    def model(self) -> nn.Module:
        """float [n, 64] -> logits [n, 64]."""
        return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def data(self, split: Split) -> Table:
        """Columns x float [4096, 64] and y int64 [4096]; little to validate, as validation is not measured."""
        rng = torch.Generator().manual_seed(0)
        x, y = torch.randn(SAMPLES, INPUTS, generator=rng), torch.randint(0, CLASSES, (SAMPLES,), generator=rng)
        return Table({"x": x, "y": y} if split == "train" else {"x": x[:64], "y": y[:64]})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy, summed."""
        return cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])


@dataclass(frozen=True)
class Real(BytesLM):
    """The byte GPT at 10.7 M parameters."""

    max_bytes: int = 400_000
    context: int = 128
    width: int = 384
    depth: int = 6
    heads: int = 6


@dataclass(frozen=True)
class Work:
    """One workload. `batch` is in samples per process; `item` says what the mean loss is over."""

    name: str
    recipe: Recipe
    batch: int

    def model(self) -> nn.Module:
        """The same initial weights for every harness."""
        torch.manual_seed(derive(0, MODEL))
        return self.recipe.model()

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The same optimizer, as good as torch has it."""
        decay = [p for p in model.parameters() if p.ndim >= 2]
        rest = [p for p in model.parameters() if p.ndim < 2]
        return AdamW([{"params": decay}, {"params": rest}], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)

    def mean_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss of a batch, to differentiate."""
        if self.name == "tiny":
            return cross_entropy(model(batch["x"]), batch["y"])
        total, count = self.recipe.loss(model, batch)
        return total / count

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches of this rank without end, the ones that a run of ours takes at seed 0."""
        data = self.recipe.data("train")
        assert isinstance(data, Table)
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        order, start = Order(len(data), derive(0, ORDER)), rank * self.batch
        while True:
            yield data.take(torch.from_numpy(order.take(start, start + self.batch)))
            start += self.batch * ranks


WORKS = {"tiny": Work("tiny", Tiny(), 64), "real": Work("real", Real(), 1)}


class Hand:
    """The loop that a person writes: forward, backward, clip, step. `steps` resumes where the last call ended."""

    def __init__(self, work: Work, batches: Iterator[dict[str, Tensor]]) -> None:
        self.work, self.batches = work, batches
        self.model = work.model()
        self.optimizer = work.optimizer(self.model)
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.model = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.parameters = list(self.model.parameters())
        self.losses: list[Tensor] = []

    def run(self) -> None:
        """Until the batches end."""
        for batch in self.batches:
            self.step(batch, False)

    def steps(self, count: int, *, keep: bool = False) -> None:
        """Take `count` steps."""
        for _ in range(count):
            self.step(next(self.batches), keep)

    def step(self, batch: dict[str, Tensor], keep: bool) -> None:
        """Take one step; `keep` its loss, to compare."""
        for group in self.optimizer.param_groups:
            group["lr"] = LR
        loss = self.work.mean_loss(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if keep:
            self.losses.append(loss.detach())


def run_file(work: Work, backend: str = "ddp", *, log: bool = True, noise: bool = True, every: int | None = None) -> dict[str, Any]:
    """The run file of a workload for us: everything on, or nothing told. A window has `every` steps."""
    return {
        "recipe": {"use": f"{__file__}:{type(work.recipe).__name__}"},
        "batch": {"reference": work.batch, "per_gpu": work.batch},
        "optim": {"name": "adamw", "lr": LR, "betas": list(BETAS), "eps": EPS, "weight_decay": DECAY, "clip": CLIP},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 10**9},
        "backend": {"name": backend},
        "watch": {"wandb": "off", "every_steps": every or (LOG_EVERY if log else 1000), "noise_scale": noise},
    }
