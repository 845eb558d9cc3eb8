"""Worker of test_nan_matrix: on every backend, a value that is not finite in every place, on every rank; and a gradient's limit."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.loader import decode
from harness.data.feed import Micro
from harness.data.sample_order import Chunk
from harness.distributed.process_group import join, leave
from harness.engine.factory import open_engine
from harness.engine.interface import Engine, Limit
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from harness.supervision.exit_codes import end_orderly
from tests.dist.workers.backends import backend, gathered

PLACES = ("input", "loss", "gradient")
VALUES = (float("nan"), float("inf"))
LR, LIMIT = 0.01, 1e-3


def opened(name: str, optimizer: str) -> Engine:
    """A small convnet on the digits under one backend."""
    tree: dict[str, Any] = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": optimizer, "lr": LR},
        "schedule": {"samples": 800},
        "backend": backend(name),
        "watch": {"every_steps": 64},
    }
    c = decode(tree)
    return open_engine(c, plan(c, World(2, 1, "cpu", 2)), load_recipe(c.recipe), cpu=True)


@contextmanager
def planted(engine: Engine, where: str, value: float) -> Iterator[None]:
    """The model's output, or the gradient that comes back through it, is `value` in one place."""

    def spoil(tensor: Tensor) -> Tensor:
        out = tensor.clone()
        out.view(-1)[0] = value
        return out

    def hook(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
        if where == "loss":
            return spoil(out)
        if where == "gradient" and out.requires_grad:
            out.register_hook(spoil)  # type: ignore[no-untyped-call]
        return out

    handle = engine.model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def matrix(engine: Engine) -> dict[str, Any]:
    """For each (rank, place, value): whether the step moved anything, and whether a good step after it is good."""
    rank = place(os.environ).rank
    data = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(rank))
    batch = {"image": data, "label": torch.arange(4)}
    engine.step([Micro(batch, Chunk(0, 4))], LR, False)
    engine.read()
    out = {}
    for bad_rank, where, value in product(range(2), PLACES, VALUES):
        before, mine = gathered(engine), rank == bad_rank
        spoilt = batch | {"image": data.clone().index_fill_(0, torch.tensor([1]), value)} if mine and where == "input" else batch
        with planted(engine, where if mine else "nowhere", value):
            engine.step([Micro(spoilt, Chunk(0, 4))], LR, False)
        after = gathered(engine)
        engine.step([Micro(batch, Chunk(0, 4))], LR, False)
        rows, later = engine.read().steps, gathered(engine)
        out[f"rank {bad_rank} {where} {value}"] = {
            "applied": [r.applied for r in rows],
            "bad": [r.bad for r in rows],
            "moved": [n for n in before if not torch.equal(before[n], after[n])],
            "not finite": [n for n, t in later.items() if not torch.isfinite(t.double()).all()],
            "stuck": all(torch.equal(after[n], later[n]) for n in later),
        }
    return out


def limited(engine: Engine) -> dict[str, Any]:
    """How far one SGD step moves the weights, with its gradient clipped to LIMIT; and with `skip`, where the backend has it."""
    batch = {"image": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)), "label": torch.arange(4)}

    def moved(limit: Limit | None) -> float:
        before = gathered(engine)
        engine.step([Micro(batch, Chunk(0, 4))], LR, False, limit=limit)
        after = gathered(engine)
        squares = [(after[n] - before[n]).double().square().sum() for n in before if n.startswith("model/")]
        return float(torch.stack(squares).sum().sqrt())

    free, clipped = moved(None), moved(Limit(LIMIT, skip=False))
    skips: Callable[[], float] = lambda: moved(Limit(LIMIT, skip=True))  # noqa: E731
    spared = skips() if not engine.plan.backend.startswith("zero") or engine.plan.backend == "zero0" else 0.0
    rows = engine.read().steps
    return {
        "free": free,
        "clipped": clipped,
        "spared": spared,
        "factors": [r.clip_factor for r in rows],
        "bad": [r.bad for r in rows],
    }


def main(folder: Path, names: list[str]) -> None:
    """Rank 0 writes what it found, by backend."""
    torch.set_num_threads(1)
    join(cpu=True)
    found = {name: {"matrix": matrix(opened(name, "adamw")), "limit": limited(opened(name, "sgd"))} for name in names}
    if place(os.environ).rank == 0:
        (folder / "nan.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
    end_orderly(0)
