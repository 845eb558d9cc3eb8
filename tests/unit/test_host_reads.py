"""No step asks the host for a value but those that count it: on a GPU each such read waits for the device. Seen on a CPU."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.data.batch_tree import move
from harness.distributed.process_group import join, leave
from harness.engine import fsdp
from harness.engine.interface import Limit
from harness.engine.loss_scale import power_of_two, power_of_two_on_device
from harness.modeling.optimizer import open_optimizer
from tests.support.host_reads import host_reads, steps_read
from tests.unit import test_gpu_branches
from tests.unit.test_gpu_branches import FP16, LR, OPTIMIZERS, Pictures, config, opened

WHOLE = {"use": f"{test_gpu_branches.__file__}:Whole"}
COUNTED = {"use": f"{__file__}:Counted"}
SHARDS = {"backend": {"name": "fsdp"}, "compute": {}, "recipe": WHOLE}
TWO_PASSES = {"batch": {"reference": 16, "total": 32, "micro": 16}}
RUNS: dict[str, dict[str, Any]] = {
    **{name: {"optim": {"name": name, "lr": LR, "clip": 1.0, "ema": 0.9, **more}} for name, more in OPTIMIZERS.items()},
    "a count on the device": {"recipe": COUNTED, "precision": "bf16"},
    "two passes": TWO_PASSES,
    "fp16": FP16,
    "fp16, two passes": FP16 | TWO_PASSES,
    "fp16, a count on the device": FP16 | {"recipe": COUNTED},
    "fsdp": SHARDS | {"optim": {"name": "adamw", "lr": LR}},
    "fsdp, two passes in bf16": SHARDS | TWO_PASSES | {"optim": {"name": "adamw", "lr": LR, "ema": 0.9}, "precision": "bf16"},
}


class Counted(Pictures):
    """The count is a tensor, as of tokens that are not padding."""

    def loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Any:
        """See Pictures."""
        total, _ = super().loss(model, batch)
        return total, (batch["label"] >= 0).sum()


def as_on_a_gpu(*of: Any, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of shards that lie on a GPU: fused."""
    assert not fused
    return open_optimizer(*of, fused=True)


@pytest.mark.parametrize("name", RUNS)
def test_no_step_reads_a_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsdp, "open_optimizer", as_on_a_gpu)
    c = config(RUNS[name])
    engine = opened(c)
    passes = engine.plan.passes
    for limit in (None, Limit(1.0, skip=False), Limit(1e-9, skip=True)):
        assert steps_read(engine, passes, limit) == []
    assert engine.meters.syncs == 0
    leave()


def test_an_optimizer_without_fused_kernels_reads_once_a_step_and_says_so() -> None:
    engine = opened(config({"optim": {"name": "adadelta", "lr": LR}}))
    engine.meters.syncs = 0
    found = steps_read(engine, 1, None)
    assert {line.split(": ")[1].split(":")[0].rsplit("/", 1)[1] for line in found} == {"optimizer_step.py"}
    assert engine.meters.syncs == 5


def test_reads_are_seen_whoever_makes_them() -> None:
    """Broken on purpose: each of these waits for a GPU."""
    t = torch.arange(4.0)
    with host_reads() as found:
        bool(t[0])
        float(t.sum())
        t.tolist()
        t.cpu()
        t[t > 1]
        torch.tensor(3, device="cpu")
        torch.as_tensor(3, device="cpu")
        torch.nonzero(t)
    assert {line.split(":")[0] for line in found} >= {
        "__bool__", "__float__", "tolist", "cpu", "tensor", "as_tensor", "nonzero", "aten.nonzero.default",
    }  # fmt: skip
    with host_reads() as found:
        torch.full((), 3.0, device="cpu") + torch.as_tensor(t, device="cpu").mean()
        torch.where(t > 1, t, 0.0).masked_fill_(t > 2, 1.0)
    assert found == []


@pytest.mark.parametrize("count", [0, 0.25, 1, 2, 3, 7, 8, 1000, 1024, 2**24 - 1, 2**24, 10**9])
def test_the_power_of_two_of_a_count_on_the_device_is_that_of_the_host(count: float) -> None:
    found = power_of_two_on_device(torch.tensor(count, dtype=torch.float64))
    assert found.dtype is torch.float32
    assert float(found) == power_of_two(count)


class Pinned(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Device meta in the place of a GPU: its driver copies without a wait from pinned memory alone, as it lies and as its type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pinned: list[int] = []
        self.sent: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchDispatchMode."""
        options = dict(kwargs or {})
        wanted = options.pop("pin_memory", None)
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and options.get("device", "cpu") != "cpu":
            given = args[0]
            assert options["non_blocking"]
            assert options.get("dtype", given.dtype) == given.dtype, "converted on its way"
            assert given.untyped_storage().data_ptr() in self.pinned, "not in pinned memory"
            assert given.numel() * given.itemsize == given.untyped_storage().nbytes(), "with gaps, which are closed first"
            self.sent.append((given.dtype, given.numel()))
        out = func(*args, **options)
        if wanted:
            self.pinned.append(out.untyped_storage().data_ptr())
        return out


@pytest.fixture
def _no_pinned_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CPUs has none: Tensor.pin_memory and is_pinned ask the driver before any mode sees them."""
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: False)


@pytest.mark.usefixtures("_no_pinned_memory_of_its_own")
def test_a_batch_goes_to_the_device_without_a_wait() -> None:
    """As fewer bytes, where the types differ; also a tensor that lies otherwise than row by row, or is a part of another."""
    batch = {
        "whole": torch.arange(6.0).view(2, 3),
        "double": torch.arange(6.0, dtype=torch.float64),
        "half": torch.arange(6.0, dtype=torch.float16),
        "bytes": torch.arange(6, dtype=torch.uint8),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "part": torch.arange(8.0).view(2, 4)[:, :3],
        "spread": torch.arange(3.0).expand(2, 3),
    }
    with Pinned() as gpu:
        moved = move(batch, torch.device("meta"), torch.float32)
    assert {name: t.dtype for name, t in moved.items()} == dict.fromkeys(batch, torch.float32) | {"bytes": torch.uint8}
    assert {name: t.shape for name, t in moved.items()} == {name: t.shape for name, t in batch.items()}
    f32, f16 = torch.float32, torch.float16
    assert gpu.sent == [(f32, 6), (f32, 6), (f16, 6), (torch.uint8, 6), (f32, 6), (f32, 6), (f32, 6)]


def test_data_workers_may_be_forked_beside_infiniband(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDMAV_FORK_SAFE", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    join(cpu=True)
    assert "RDMAV_FORK_SAFE" not in os.environ
    join(cpu=False)
    assert os.environ["RDMAV_FORK_SAFE"] == "1"
