"""Batches of any type are moved, cast, fetched by workers, hashed and compared, and keep their type."""

from collections import OrderedDict, UserDict, defaultdict, deque
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.batch_tree import leaves, move
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe
from harness.recipes.fingerprint import row_digest
from harness.telemetry.events import Evaluated, Stepped
from harness.tools.reference import digests
from harness.tools.verify import verify
from harness.training.loop import train
from tests.dist.workers.batched import Frozen, Graph, New, Old, Sampled, wrapped

KINDS = ["old", "new", "frozen", "ordered", "default", "user", "space", "nested", "packed", "graph"]
CPU = torch.device("cpu")


def tree(kind: str, **knobs: Any) -> dict[str, Any]:
    return {
        "recipe": {"use": f"{wrapped.__code__.co_filename}:Batched", "kind": kind, **knobs},
        "batch": {"reference": 16, "total": 16, "micro": 8},
        "optim": {"name": "sgd", "lr": 0.05},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 64},
        "watch": {"wandb": "off"},
    }


def losses(kind: str, **knobs: Any) -> list[float | None]:
    config = decode(tree(kind, **knobs))
    told = list(train(config, plan(config, World(1, device="cpu")), cpu=True))
    steps = [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)]
    return steps + [e.metrics["eval/loss"] for e in told if isinstance(e, Evaluated)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_any_type_is_the_run_on_dicts(kind: str) -> None:
    assert losses(kind) == losses(kind, workers=1) == pytest.approx(losses("dict"), rel=1e-6)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "graph"])
def test_moving_casts_floats_and_keeps_the_type_and_what_is_no_tensor(kind: str) -> None:
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.arange(3)
    batch = {"x": pack_sequence([x], enforce_sorted=False), "y": y} if kind == "packed" else wrapped(kind, x, y)
    moved = move(batch, CPU, torch.float32)
    assert type(moved) is type(batch)
    pairs = list(zip(leaves(batch), leaves(moved), strict=True))
    assert len(pairs) >= 2
    for was, now in pairs:
        if isinstance(was, torch.Tensor):
            assert now.dtype == (torch.float32 if was.is_floating_point() else was.dtype)
        else:
            assert now == was
    assert row_digest(batch) != row_digest(wrapped(kind, x + 1, y))


def test_each_type_keeps_what_makes_it_special(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, dtype=torch.float64)
    assert list(move(OrderedDict(b=x, a=x), CPU, torch.float32)) == ["b", "a"]
    assert move(defaultdict(list, a=x), CPU, torch.float32)["other"] == []
    assert move(deque([x], 3), CPU, torch.float32).maxlen == 3
    assert isinstance(move(MappingProxyType({"a": x}), CPU, torch.float32), MappingProxyType)
    assert move(SimpleNamespace(a=x, b=None), CPU, torch.float32).b is None
    user = Sampled(a=x)
    vars(user)["extra"] = "kept"
    assert vars(move(user, CPU, torch.float32))["extra"] == "kept"
    assert user["a"].dtype == torch.float64, "the caller's own is left alone"
    packed = move(pack_sequence([x, x[:1]]), CPU, torch.float32)
    assert isinstance(packed, PackedSequence)
    assert (packed.data.dtype, packed.batch_sizes.tolist()) == (torch.float32, [2, 1])
    monkeypatch.setattr("harness.data.batch_tree.pinned", lambda leaf, kind: leaf)  # a build for CPUs has no pinned memory
    on_meta = move(packed, torch.device("meta"), torch.float32)
    assert (on_meta.data.device.type, on_meta.batch_sizes.tolist()) == ("meta", [2, 1]), "torch wants the sizes on the host"
    graph = move(Graph(x, x), CPU, torch.float32)
    assert graph.moved
    assert isinstance(move((Old(x, x), [New(x, x)], Frozen(x, x)), CPU, torch.float32)[1][0], New)
    assert isinstance(move(UserDict(a=UserDict(b=x)), CPU, torch.float32)["a"], UserDict)


def test_verify_tells_samples_apart_in_any_type() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    for kind in KINDS:
        batch = wrapped(kind if kind != "packed" else "dict", x, x[:, 0])
        assert len(set(digests(batch, 3))) == (3 if kind != "graph" else 1)
    config = decode(tree("frozen"))
    assert {f.verdict for f in verify(config, World(1, device="cpu"), cpu=True)} == {"same"}


def test_random_keys_need_a_batch_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "augments", True)
    assert len(losses("user")) == 5
    with pytest.raises(UserError, match="its batch is a Frozen, which takes no `key`; collate into a dict"):
        losses("frozen")
