"""The same run in one process and the fewest lines: no engine, no ranks, no passes dealt out. What N ranks are compared with.

It shares with the engines what the user and the plan own (recipe, optimizer, rates, the order of samples), and none of how they
compute: it reads its own batches, adds the losses' gradients up, divides by the count and steps.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from harness.engine.engine import DTYPES, autocast
from harness.engine.names import layer_label
from harness.engine.pieces import Piece, whole
from harness.parts.data import Data, Table, move
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.order import Order, derive, keys
from harness.plan.plan import Plan
from harness.stats.parity import StepTrace, Trace

BLOCK = 1 << 20


@dataclass(frozen=True)
class Oddity:
    """How a run is made another on purpose, to see what it hangs on: passes in evaluation mode, other random numbers in them."""

    evaluating: bool = False
    reseed: int = 0


PLAIN = Oddity()


class Reference:
    """A run of `config` as `plan` has it, in passes of `micro` samples, on `device`."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, device: torch.device) -> None:
        self.config, self.plan, self.recipe, self.device = config, plan, recipe, device
        self.dtype, self.seed = DTYPES[config.precision], config.run.seed
        self.data: Data = recipe.data("train")
        self.order = Order(len(self.data), derive(self.seed, 3))
        self.names: dict[str, int] = {}

    def run(self, micro: int, steps: int | None = None, oddity: Oddity = PLAIN, *, evaluate: bool = False) -> Trace:
        """Train from fresh weights, over the whole plan or its first `steps`."""
        model, optimizer = self._fresh()
        traced: list[StepTrace] = []
        for start in range(0, self.plan.total_samples, self.plan.global_batch):
            if len(traced) == steps:
                break
            traced.append(self._step(model, optimizer, start, micro, oddity))
        sketches = sketch(whole(f"model/{name}", p) for name, p in model.named_parameters())
        return Trace(traced, sketches, self._evaluate(model) if evaluate else {})

    def batch_norm(self) -> bool:
        """Whether the model has a BatchNorm that takes its statistics from a pass."""
        return any(isinstance(m, _BatchNorm) for m in self._fresh()[0].modules())

    def running(self) -> bool:
        """Whether the model keeps statistics, which are means over ranks where there are some."""
        return any(b.is_floating_point() for b in self._fresh()[0].buffers())

    def _fresh(self) -> tuple[nn.Module, Optimizer]:
        seed_torch(derive(self.seed, 1))
        model = self.recipe.model().to(self.device, self.dtype)
        plan = replace(self.plan, backend="ddp")
        return model, self.recipe.optimizer(model, plan) or build_optimizer(plan, self.recipe, model, fused=False)

    def _step(self, model: nn.Module, optimizer: Optimizer, start: int, micro: int, oddity: Oddity) -> StepTrace:
        """One optimizer step from stream position `start`."""
        samples = min(self.plan.global_batch, self.plan.total_samples - start)
        rows: Counter[str] = Counter()
        passes = []
        model.train(not oddity.evaluating)
        for first in range(start, start + samples, micro):
            batch = self._batch(first, min(micro, start + samples - first), rows)
            seed_torch(derive(self.seed, 2, first) ^ oddity.reseed)
            with autocast(self.config, self.device):
                total, count = self.recipe.loss(model, batch)
            total.backward()  # type: ignore[no-untyped-call]
            passes.append((float(total.detach()), float(count)))
        items = sum(count for _, count in passes)
        named = {name: p for name, p in model.named_parameters() if p.grad is not None}
        grads = [p.grad for p in named.values() if p.grad is not None]
        for grad in grads:
            grad /= items
        norms = {layer_label(name): float(p.grad.double().norm()) for name, p in named.items() if p.grad is not None}
        norm = math.sqrt(sum(n * n for n in norms.values()))
        if self.plan.clip is not None and norm > self.plan.clip:
            for grad in grads:
                grad *= self.plan.clip / norm
        rate = self.plan.lr_at(start)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = sum(total for total, _ in passes) / items
        return StepTrace(rows, samples, loss, items, norm, (rate,), norms, tuple(passes))

    def _batch(self, first: int, count: int, rows: Counter[str]) -> Any:
        """The samples at stream positions [first, first + count); their digests go into `rows`."""
        ids = self.order.take(first, first + count)
        if isinstance(self.data, Table):
            batch: Any = self.data.take(torch.from_numpy(ids))
        else:
            batch = self.recipe.collate([self.data[int(i)] for i in ids])
        if self.recipe.augments:
            batch["key"] = torch.from_numpy(keys(derive(self.seed, 4), first, first + count))
        batch = move(batch, self.device, self.dtype)
        found = digests(batch, count)
        self.names |= dict(zip(found, ids.tolist(), strict=True))
        rows.update(found)
        return batch

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        """Means of the recipe's metrics over the validation split."""
        data, micro = self.recipe.data("valid"), self.plan.micro_batch
        totals: dict[str, list[float]] = {}
        model.eval()
        for first in range(0, len(data), micro):
            ids = range(first, min(first + micro, len(data)))
            batch: Any = data.take(torch.tensor(ids)) if isinstance(data, Table) else self.recipe.collate([data[i] for i in ids])
            if self.recipe.augments:
                batch["key"] = torch.from_numpy(keys(derive(self.seed, 4), ids.start, ids.stop))
            with torch.no_grad(), autocast(self.config, self.device):
                sums = self.recipe.metrics(model, move(batch, self.device, self.dtype))
            for name, (total, count) in sums.items():
                had = totals.setdefault(name, [0.0, 0.0])
                totals[name] = [had[0] + float(total), had[1] + float(count)]
        return {f"eval/{name}": total / count for name, (total, count) in totals.items()}


def digests(batch: Any, count: int) -> list[str]:
    """A digest of each of a batch's `count` samples: of its rows in all tensors that have as many."""
    rows = [blake2b(digest_size=8) for _ in range(count)]
    for tensor in _tensors(batch):
        if tensor.ndim and len(tensor) == count:
            flat = tensor.detach().cpu().contiguous().view(torch.uint8).reshape(count, -1).numpy()
            for row, held in zip(rows, flat, strict=True):
                row.update(held.tobytes())
    return [row.hexdigest() for row in rows]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for name in sorted(batch, key=str):
            yield from _tensors(batch[name])
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


def sketch(pieces: Iterator[Piece]) -> dict[str, list[float]]:
    """Of each weight: its squared norm and two projections. Of pieces of it they add up to those of the whole."""
    out: dict[str, list[float]] = {}
    for piece in pieces:
        if not piece.name.startswith("model/"):
            continue
        had = out.setdefault(piece.name, [0.0, 0.0, 0.0])
        for low in range(0, len(piece.data), BLOCK):
            part = piece.data[low : low + BLOCK].detach().double().cpu()
            at = torch.arange(piece.start + low, piece.start + low + len(part), dtype=torch.float64)
            numbers = (part @ part, part @ torch.sin(at * 0.7548776662466927), part @ torch.cos(at * 0.5698402909980532))
            had[:] = [a + float(b) for a, b in zip(had, numbers, strict=True)]
    return out
