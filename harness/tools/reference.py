"""The same run in one process and the fewest lines: no engine, no ranks, no distributed passes. N ranks are compared with it.

It shares with the engines what the user and the plan own (recipe, optimizer, rates, the order of samples), and none of how they
set up or compute: it builds the model as a plain loop would, reads its own batches, adds the losses' gradients up, divides by the
count and steps.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from harness.analysis.equivalence import StepTrace, Trace
from harness.checkpoint.tensor_slices import TensorSlice, whole
from harness.config.schema import Config
from harness.data.batch_tree import leaves, move
from harness.data.columns import Columns
from harness.data.feed import MapStyle
from harness.data.sample_order import derive, keys
from harness.data.seeding import EVALUATION, KEYS, MODEL, PASS, collate_seed, sample_seed, seed_all
from harness.data.training_order import training_order
from harness.engine.param_names import layer_label
from harness.modeling.optimizer import build_optimizer
from harness.modeling.own_optimizer import TwoModes
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.recipes.contract import fresh_model, own_optimizer, train_split, valid_split

BLOCK = 1 << 20
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Oddity:
    """A deliberate change of the run, to see what it depends on: passes in evaluation mode, or with different random numbers."""

    evaluating: bool = False
    reseed: int = 0


PLAIN = Oddity()


class Reference:
    """A run of `config` as `plan` has it, in passes of `micro` samples, on `device`."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, device: torch.device) -> None:
        self.config, self.plan, self.recipe, self.device = config, plan, recipe, device
        self.dtype, self.seed = torch.float64 if config.precision == "fp64" else torch.float32, config.run.seed
        self.data = train_split(recipe, self.seed)
        self.order = training_order(self.data, config)
        self.names: dict[str, int] = {}

    def run(self, micro: int, steps: int | None = None, oddity: Oddity = PLAIN, *, evaluate: bool = False) -> Trace:
        """Train from fresh weights, over the whole plan or its first `steps`."""
        model, optimizer = self._fresh()
        before = [buffer.clone() for buffer in model.buffers()]
        traced: list[StepTrace] = []
        for start in range(0, self.plan.total_samples, self.plan.global_batch):
            if len(traced) == steps:
                break
            traced.append(self._step(model, optimizer, start, micro, oddity))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) in held)
        sketches = sketch(whole(f"model/{name}", p) for name, p in trained)
        # running statistics are averaged over ranks in the run to compare with, so metrics would differ
        still = len(before) == len(list(model.buffers())) and all(map(torch.equal, before, model.buffers()))
        return Trace(traced, sketches, self._evaluate(model, optimizer) if evaluate and still else {})

    def batch_norm(self) -> bool:
        """Whether the model has a BatchNorm that takes its statistics from a pass."""
        return any(isinstance(m, _BatchNorm) for m in self._fresh()[0].modules())

    def _fresh(self) -> tuple[nn.Module, Optimizer]:
        seed_all(derive(self.seed, MODEL))
        model = self._model()
        plan = replace(self.plan, backend="ddp")
        optimizer = own_optimizer(self.recipe, model, plan)
        if optimizer is None:
            return model, build_optimizer(plan, self.recipe, model, fused=False)
        base = _planned_rate(optimizer, plan)
        for group in optimizer.param_groups:
            group.setdefault("lr_scale", group["lr"] / base)
        if isinstance(optimizer, TwoModes):
            optimizer.train()
        return model, optimizer

    def _model(self) -> nn.Module:
        """Fresh weights. Frozen ones keep the type that the recipe gave them, except in float64."""
        model = fresh_model(self.recipe).to(self.device).train()
        if self.dtype == torch.float64:
            return model.double()  # complex and integer tensors stay as they are
        if all(p.requires_grad or p.dtype == self.dtype for p in model.parameters()):
            return model.float()
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(self.dtype)
        return model

    def _autocast(self) -> AbstractContextManager[Any]:
        half = AUTOCAST.get(self.config.precision)
        return nullcontext() if half is None else torch.autocast(self.device.type, half)

    def _step(self, model: nn.Module, optimizer: Optimizer, start: int, micro: int, oddity: Oddity) -> StepTrace:
        """One optimizer step from stream position `start`."""
        samples = min(self.plan.global_batch, self.plan.total_samples - start)
        rows: Counter[str] = Counter()
        model.train(not oddity.evaluating)
        passes = [
            self._pass(model, self._batch(first, min(micro, start + samples - first), rows, oddity), first, oddity)
            for first in range(start, start + samples, micro)
        ]
        items = sum(count for _, count in passes)
        if items == 0:  # nothing was counted: the step changes nothing
            optimizer.zero_grad()
            return StepTrace(rows, samples, math.nan, 0.0, math.nan, (), {}, tuple(passes))
        norms, norm = self._normalise(model, optimizer, items)
        rate = self.plan.lr_at(start)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        optimizer.step()
        model.zero_grad()
        loss = sum(total for total, _ in passes) / items
        return StepTrace(rows, samples, loss, items, norm, (rate,), norms, tuple(passes))

    def _pass(self, model: nn.Module, batch: Any, first: int, oddity: Oddity) -> tuple[float, float]:
        """Forward and backward of the batch at stream position `first`: (its summed loss, its count)."""
        seed_all(derive(self.seed, PASS, first) ^ oddity.reseed)
        with self._autocast():
            total, count = self.recipe.loss(model, batch)
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach()), float(count)

    def _normalise(self, model: nn.Module, optimizer: Optimizer, items: float) -> tuple[dict[str, float], float]:
        """Make the summed gradients the mean's, and clip them: (the norms before that by parameter, that of all)."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in held}
        for p in named.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # a parameter that was not used in this step
            p.grad /= items
        norms = {layer_label(name): float(p.grad.abs().double().norm()) for name, p in named.items() if p.grad is not None}
        norm = math.sqrt(sum(n * n for n in norms.values()))
        if self.plan.clip is not None and norm > self.plan.clip:
            for grad in [p.grad for p in named.values() if p.grad is not None]:
                grad *= self.plan.clip / norm
        return norms, norm

    def _batch(self, first: int, count: int, rows: Counter[str], oddity: Oddity) -> Any:
        """The samples at stream positions [first, first + count); their digests go into `rows`."""
        ids = self.order.take(first, first + count)
        if isinstance(self.data, Columns):
            batch: Any = self.data.take(torch.from_numpy(ids))
        else:
            batch = self._collated(self.data, ids.tolist(), first, oddity.reseed)
        if self.recipe.augments:
            batch["key"] = torch.from_numpy(keys(derive(self.seed, KEYS), first, first + count))
        batch = move(batch, self.device, self.dtype)
        found = digests(batch, count)
        self.names |= dict(zip(found, ids.tolist(), strict=True))
        rows.update(found)
        return batch

    def _collated(self, data: MapStyle, ids: Sequence[int], first: int, reseed: int = 0) -> Any:
        """The samples `ids`, at stream positions from `first` on; each draws from its own random numbers, and so does collate."""
        samples = []
        for place, number in enumerate(ids):
            seed_all(sample_seed(self.seed, first + place))
            samples.append(data[number])
        seed_all(collate_seed(self.seed, first) ^ reseed)
        return self.recipe.collate(samples)

    def _evaluate(self, model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
        """Means of the recipe's metrics over the validation split."""
        data, micro = valid_split(self.recipe, self.seed), self.plan.micro_batch
        if data is None:
            return {}
        totals: dict[str, list[float]] = {}
        model.eval()
        if isinstance(optimizer, TwoModes):
            optimizer.eval()
        for first in range(0, len(data), micro):
            ids = range(first, min(first + micro, len(data)))
            batch: Any = data.take(torch.tensor(ids)) if isinstance(data, Columns) else self._collated(data, ids, first)
            if self.recipe.augments:
                batch["key"] = torch.from_numpy(keys(derive(self.seed, KEYS), ids.start, ids.stop))
            seed_all(derive(self.seed, EVALUATION, first))
            with torch.no_grad(), self._autocast():
                sums = self.recipe.metrics(model, move(batch, self.device, self.dtype))
            for name, (total, count) in sums.items():
                had = totals.setdefault(name, [0.0, 0.0])
                totals[name] = [had[0] + float(total), had[1] + float(count)]
        return {f"eval/{name}": total / count for name, (total, count) in totals.items()}


def _planned_rate(optimizer: Optimizer, plan: Plan) -> float:
    """Which of the plan's rates the recipe built its optimizer with."""
    rates = [optimizer.defaults["lr"], *sorted((group["lr"] for group in optimizer.param_groups), reverse=True)]
    return next((rate for rate in rates if rate in (plan.lr(0), plan.target_lr)), 1.0)


def digests(batch: Any, count: int) -> list[str]:
    """A digest of each of a batch's `count` samples: of its rows in all tensors that have as many."""
    rows = [blake2b(digest_size=8) for _ in range(count)]
    for tensor in leaves(batch):
        if isinstance(tensor, Tensor) and tensor.ndim and len(tensor) == count:
            flat = tensor.detach().cpu().contiguous().view(torch.uint8).reshape(count, -1).numpy()
            for row, held in zip(rows, flat, strict=True):
                row.update(held.tobytes())
    return [row.hexdigest() for row in rows]


def sketch(pieces: Iterator[TensorSlice]) -> dict[str, list[float]]:
    """The squared norm and two projections of each weight; those of a weight's pieces add up to those of the whole."""
    out: dict[str, list[float]] = {}
    for piece in pieces:
        if not piece.name.startswith("model/"):
            continue
        had = out.setdefault(piece.name, [0.0, 0.0, 0.0])
        for low in range(0, len(piece.data), BLOCK):
            part = piece.data[low : low + BLOCK].detach().cpu()
            at = torch.arange(piece.start + low, piece.start + low + len(part), dtype=torch.float64)
            if part.is_complex():
                part, at = torch.view_as_real(part).flatten(), torch.stack([at, -at], 1).flatten()
            part = part.double()
            numbers = (part @ part, part @ torch.sin(at * 0.7548776662466927), part @ torch.cos(at * 0.5698402909980532))
            had[:] = [a + float(b) for a, b in zip(had, numbers, strict=True)]
    return out
