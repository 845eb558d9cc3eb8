"""The branches that a step takes on a GPU, on a CPU: memory formats, fp16, memory that runs out, state that is offloaded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.distributed.process_group import leave, out_of_memory
from harness.engine import gradients
from harness.engine import optimizer_step as torch_step
from harness.engine.deepspeed import open_deepspeed
from harness.engine.ema import Average
from harness.engine.factory import open_engine
from harness.engine.fused_step import Step
from harness.engine.interface import Engine, Limit, StepTooLargeError
from harness.engine.update_norms import UpdateNorms
from harness.modeling.memory_layout import same_layout
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.telemetry.events import Event, Noticed, Stepped
from harness.training.loop import train

LR = 0.01
OPTIMIZERS = {"sgd": {"momentum": 0.9}, "adamw": {}, "adagrad": {}}


class Net(nn.Module):
    """Convolutions with BatchNorm, and a matrix that lies transposed."""

    def __init__(self, *, hooked: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten()
        )
        self.head = nn.Parameter(torch.randn(5, 6 * 16).mul_(0.1).t())
        if hooked:
            for p in self.parameters():
                p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad.contiguous()))  # type: ignore[no-untyped-call]

    def forward(self, image: Tensor) -> Tensor:
        """float [n, 3, 4, 4] -> logits [n, 5]."""
        out: Tensor = self.body(image) @ self.head
        return out


@dataclass(frozen=True)
class Pictures(Recipe):
    """Noise in five classes."""

    hooked: bool = False
    """Whether a hook makes every gradient row-major."""
    gaps: bool = False
    """Whether the model has a parameter that is a part of a larger tensor."""
    nan: float = -1.0
    """In the pass that has this label first, the loss is NaN and its gradient is finite."""

    def model(self) -> nn.Module:
        """See Net."""
        net = Net(hooked=self.hooked)
        if self.gaps:
            net.head = nn.Parameter(torch.randn(6 * 16, 8).mul_(0.1)[:, :5])
        return net

    def data(self, split: Split) -> Table:
        """Columns image, label."""
        draw = torch.Generator().manual_seed(0)
        return Table({"image": torch.randn(64, 3, 4, 4, generator=draw), "label": torch.randint(5, (64,), generator=draw)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy."""
        total = cross_entropy(model(batch["image"]), batch["label"], reduction="sum")
        return total + torch.where(batch["label"][0] == self.nan, torch.nan, 0.0), len(batch["label"])


def config(over: Mapping[str, Any] | None = None, **knobs: Any) -> Config:
    """Sixteen steps of 16, in memory format NHWC."""
    tree: dict[str, Any] = {
        "recipe": {"use": f"{__file__}:Pictures", **knobs},
        "batch": {"reference": 16, "total": 16},
        "optim": {"name": "sgd", "lr": LR, "momentum": 0.9, "ema": 0.9},
        "schedule": {"samples": 256},
        "scaling": {"rule": "none"},
        "compute": {"channels_last": True},
        "watch": {"wandb": "off", "every_steps": 4},
    }
    return decode(tree | dict(over or {}))


def opened(c: Config) -> Any:
    """The engine of a plan for one GPU, on the CPU."""
    return open_engine(c, plan(c, World(1)), load_recipe(c.recipe), cpu=True)


def micro(number: int) -> Micro:
    """The pass of the step `number`."""
    columns = Pictures().data("train").columns
    rows = slice(16 * (number % 4), 16 * (number % 4) + 16)
    return Micro({name: column[rows].clone() for name, column in columns.items()}, Chunk(16 * number, 16))


def steps(engine: Engine, first: int, last: int, lr: float = LR) -> None:
    for number in range(first, last):
        engine.step([micro(number)], lr, False, close=number % 4 == 3)


def kept(engine: Engine) -> list[TensorSlice]:
    """The state as a save would take it."""
    return [TensorSlice(p.name, p.shape, p.start, p.data.clone()) for p in engine.pieces()]


def source(pieces: list[TensorSlice]) -> SliceReader:
    """A checkpoint of copies: what is loaded may become state that steps write to."""
    return SliceReader.of(TensorSlice(p.name, p.shape, p.start, p.data.clone()) for p in pieces)


def state(engine: Engine) -> dict[str, Tensor]:
    whole = source(kept(engine))
    return {name: whole.whole(name) for name in whole}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []


@pytest.fixture
def _strides_as_cuda_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's fused optimizers refuse lists whose tensors do not lie alike; the CPU's pair the wrong elements in silence."""

    def checking(make: Callable[..., Step]) -> Callable[..., Step]:
        def checked(optimizer: torch.optim.Optimizer, *others: Any) -> Step:
            step = make(optimizer, *others)

            def strict(found_inf: Tensor) -> None:
                for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                    alike = [p.grad, *(v for v in optimizer.state[p].values() if isinstance(v, Tensor) and v.shape == p.shape)]
                    assert all(same_layout(one, p) for one in alike)
                step(found_inf)

            return strict

        return checked

    for name in ("bare_step", "kernel_step"):
        monkeypatch.setattr(torch_step, name, checking(getattr(torch_step, name)))


@pytest.mark.usefixtures("_strides_as_cuda_wants_them")
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resume_and_a_roll_back_in_any_memory_format_are_exact(optimizer: str, hooked: bool) -> None:
    """Moments are saved row-major; the parameters are NHWC, or transposed."""
    c = config({"optim": {"name": optimizer, "lr": LR, "ema": 0.9, **OPTIMIZERS[optimizer]}}, hooked=hooked)
    engine = opened(c)
    assert not engine.model.body[0].weight.is_contiguous()
    steps(engine, 0, 4)
    saved = kept(engine)
    steps(engine, 4, 8)
    expected = state(engine)
    assert any(name.startswith("ema/") for name in expected)
    engine.load(source(saved))
    steps(engine, 4, 8)
    assert_same(state(engine), expected)
    resumed = opened(c)
    resumed.load(source(saved))
    steps(resumed, 4, 8)
    assert_same(state(resumed), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_memory_format_changes_nothing(optimizer: str) -> None:
    """Also not that of a parameter with gaps, through which one kernel for all weights would walk."""
    over = {"optim": {"name": optimizer, "lr": LR, **OPTIMIZERS[optimizer]}}
    for gaps in (False, True):
        engines = [opened(config(over | {"compute": {"channels_last": nhwc}}, gaps=gaps)) for nhwc in (True, False)]
        if gaps:
            engines[1].model.head.data = engines[1].model.head.data.contiguous()
        for engine in engines:
            steps(engine, 0, 4)
        found, expected = (state(engine) for engine in engines)
        assert {n for n in found if not torch.allclose(found[n], expected[n], atol=1e-5)} == set(), f"gaps {gaps}"


def test_a_checkpoint_file_of_nhwc_weights_is_resumed_exactly(tmp_path: Path) -> None:
    def losses(c: Config, folder: Path) -> list[float | None]:
        events = list(train(c, plan(c, World(1), 64), cpu=True, folder=folder))
        return [e.metrics["train/loss"] for e in events if isinstance(e, Stepped)]

    over = {"optim": {"name": "adamw", "lr": LR, "ema": 0.9}}
    whole = losses(config(over), tmp_path / "whole")
    parts = losses(config(over | {"run": {"stop_after_steps": 6}}), tmp_path / "parts") + losses(config(over), tmp_path / "parts")
    assert len(whole) == 16
    assert parts == whole


def test_a_checkpoint_of_nhwc_weights_goes_to_shards_and_back() -> None:
    over = {"optim": {"name": "adamw", "lr": LR}}
    engine = opened(config(over, gaps=False))
    engine.model.head.data = engine.model.head.data.contiguous()  # fsdp takes no other
    steps(engine, 0, 4)
    saved = kept(engine)
    c = config(over | {"compute": {}, "backend": {"name": "fsdp"}, "recipe": {"use": f"{__file__}:Whole"}})
    shards = opened(c)
    shards.load(source(saved))
    assert_same(state(shards), state(engine))
    again = opened(config(over))
    again.load(source(kept(shards)))
    assert_same(state(again), state(engine))
    leave()


@dataclass(frozen=True)
class Whole(Pictures):
    """Pictures, with a row-major matrix."""

    def model(self) -> nn.Module:
        """See Net."""
        net = Net(hooked=False)
        net.head = nn.Parameter(net.head.detach().contiguous())
        return net


def test_shards_and_deepspeed_refuse_parameters_that_are_not_row_major() -> None:
    c = config({"optim": {"name": "adamw", "lr": LR}, "compute": {}, "backend": {"name": "fsdp"}})
    with pytest.raises(UserError, match=r"recipe.use: parameter head is not contiguous .*fsdp.*\.contiguous\(\)"):
        opened(c)
    leave()
    net = Net(hooked=False)
    with pytest.raises(UserError, match=r"recipe.use: parameter head is not contiguous .*DeepSpeed"):
        open_deepspeed(net, torch.optim.SGD(net.parameters()), {}, torch.device("cpu"))
    for name in ("fsdp", "zero0", "zero1", "zero2", "zero3"):
        with pytest.raises(UserError, match=r"compute.channels_last: is true, but "):
            plan(config({"optim": {"name": "adamw", "lr": LR}, "backend": {"name": name}}), World(8), 64)


FP16 = {"precision": "fp16", "optim": {"name": "sgd", "lr": LR, "momentum": 0.9}}


@contextmanager
def overflow(engine: Any) -> Iterator[None]:
    """Inside, the gradient of the model's output has an infinity."""

    def hook(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
        out.register_hook(lambda grad: grad.clone().index_fill_(0, torch.tensor([0]), torch.inf))  # type: ignore[no-untyped-call]
        return out

    handle = engine.model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def uninitialised_is_nan() -> Iterator[None]:
    """Inside, torch.empty gives NaN, as it may at any time."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_fp16_that_overflows_at_its_first_step_takes_the_second_as_if_it_were_the_first() -> None:
    with uninitialised_is_nan():
        engine, other = opened(config(FP16)), opened(config(FP16))
        before = state(engine)
        with overflow(engine):
            steps(engine, 0, 1)
        moved = {n for n, was in before.items() if not torch.equal(state(engine)[n], was)}
        assert moved == {"scaler/scale"}, "the scale is lowered, nothing else moves"
        steps(engine, 1, 2)
        steps(other, 1, 2)
        rows = engine.read().steps
        assert [row.applied for row in rows] == [0, 1]
        assert [row.loss_scale for row in rows] == [2.0**16, 2.0**15], "of each step, the scale it was taken with"
        found, expected = state(engine), state(other)
        assert all(torch.isfinite(t).all() for t in found.values())
        weights = [n for n in found if n.startswith("model/")]
        assert {n for n in weights if not torch.allclose(found[n], expected[n], atol=1e-3)} == set()


def test_momentum_is_made_anew_after_a_roll_back_to_before_the_first_step() -> None:
    with uninitialised_is_nan():
        engine = opened(config({"optim": {"name": "sgd", "lr": LR, "momentum": 0.9}}))
        begin = kept(engine)
        steps(engine, 0, 2)
        engine.load(source(begin))
        with overflow(engine):
            steps(engine, 0, 1)
        steps(engine, 0, 1)
        assert all(torch.isfinite(t).all() for t in state(engine).values())


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "rmsprop"])
def test_fp16_moves_nothing_where_the_guard_skips_or_the_loss_is_not_finite(optimizer: str) -> None:
    """In neither of both is there an overflow that the loss scale would see."""
    label = int(micro(1).batch["label"][0])
    over = FP16 | {"optim": {"name": optimizer, "lr": LR, "ema": 0.9, **OPTIMIZERS.get(optimizer, {})}}
    engine = opened(config(over, nan=label))
    steps(engine, 0, 1, lr=1e-5)
    before = state(engine)
    steps(engine, 1, 2)
    assert_same(state(engine), before)
    engine.step([micro(0)], LR, False, limit=Limit(1e-6, skip=True))
    assert_same(state(engine), before)
    first, bad, spared = engine.read().steps
    assert (first.applied, bad.applied, spared.applied) == (1, 0, 0)
    assert (bad.bad, spared.bad) == (True, False)


def test_memory_that_runs_out_past_the_allocator_of_torch_is_known_by_its_words() -> None:
    """CUDA and its libraries take memory of their own; what they say is no torch.OutOfMemoryError."""
    for text in (
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA driver error: out of memory",
        "out of memory (2)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "NCCL error: unhandled cuda error, NCCL version 2.27.5\nLast error:\nCuda failure 2 'out of memory'",
        "NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc async 608 bytes",
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory",
    ):
        assert out_of_memory(RuntimeError(text)), text
    for text in (
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "NCCL error: remote process exited or there was a network error",
        "the simulation ran out of memory cells",
    ):
        assert not out_of_memory(RuntimeError(text)), text
    assert not out_of_memory(ValueError("CUDA error: out of memory")), "no error of torch's"


@pytest.fixture
def _memory_runs_out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, in the place that the parameter names, in the words of a CUDA call that is no allocation of torch's."""
    left = [True]

    def failing(function: Any) -> Any:
        def once(*args: Any, **options: Any) -> Any:
            if left:
                left.clear()
                raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
            return function(*args, **options)

        return once

    homes: dict[str, tuple[Any, str]] = {
        "norms": (gradients, "norms"),
        "moments": (torch.optim.SGD, "_init_group"),
        "update norms": (UpdateNorms, "__init__"),
        "after the move": (UpdateNorms, "norms"),
        "average": (Average, "take"),
    }
    home, name = homes[request.param]
    monkeypatch.setattr(home, name, failing(getattr(home, name)))


@pytest.mark.usefixtures("_memory_runs_out")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("_memory_runs_out", ["norms", "moments", "update norms"], indirect=True)
def test_a_step_that_did_not_fit_before_it_moved_anything_is_taken_again(precision: str) -> None:
    """It is then, bit for bit, the run that was planned in passes of half the size: no gradient and no statistic is left over."""
    over = {"precision": precision, "optim": {"name": "sgd", "lr": LR, "momentum": 0.9, "clip": 1.0, "ema": 0.9}}

    def run(c: Config) -> list[Event]:
        return list(train(c, plan(c, World(1), 64), cpu=True))

    first, second = run(config(over)), run(config(over | {"batch": {"reference": 16, "total": 16, "micro": 8}}))
    assert [e.code for e in first if isinstance(e, Noticed)].count("out_of_memory") == 1
    found, expected = ([e.metrics for e in events if isinstance(e, Stepped)] for events in (first, second))
    assert len(found) == 16
    for name in ("train/loss", "train/grad_norm", "batch/samples"):
        assert [m[name] for m in found] == [m[name] for m in expected], name


@pytest.mark.usefixtures("_memory_runs_out")
@pytest.mark.parametrize("_memory_runs_out", ["after the move", "average"], indirect=True)
def test_a_step_that_did_not_fit_after_it_moved_is_not_taken_again() -> None:
    engine = opened(config())
    running = [b.clone() for b in engine.model.buffers()]
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        engine.step([micro(0)], LR, False, close=True)
    assert not isinstance(caught.value, StepTooLargeError), "whoever would take it again would apply it twice"
    assert all(p.grad is None for p in engine.model.parameters())
    assert all(torch.equal(b, was) for b, was in zip(engine.model.buffers(), running, strict=True))


def test_moments_that_fit_for_one_group_only_are_a_step_that_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch moves a group before it makes the moments of the next."""
    engine = opened(config({"optim": {"name": "adamw", "lr": LR}}))
    only = engine.optimizer.param_groups[0]
    halves = only["params"][:3], only["params"][3:]
    engine.optimizer.param_groups[:] = [only | {"params": half} for half in halves]
    makes, calls = torch.optim.Adam._init_group, list[int]()

    def second_fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return makes(*args)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(torch.optim.Adam, "_init_group", second_fails)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        engine.step([micro(0)], LR, False)
    assert not isinstance(caught.value, StepTooLargeError)


class Late(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies from device meta to the host: what is asked for without waiting is not there yet, and reads as 0; else 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchDispatchMode."""
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            return torch.full((), 0.0 if options.get("non_blocking") else 1.0)
        return func(*args, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_offloaded_weights_wait_for_the_flag_that_skips_the_step(optimizer: str) -> None:
    """The weights lie on the host, the flag on the device. Where they lie is looked at once, at the first move."""
    engine = opened(config({"optim": {"name": optimizer, "lr": LR, **OPTIMIZERS[optimizer]}}))
    steps(engine, 0, 1)
    before = state(engine)
    engine.model.zero_grad()
    engine.recipe = load_recipe(config().recipe)
    total, _ = engine.recipe.loss(engine.model, micro(1).batch)
    total.backward()
    with Late():  # type: ignore[no-untyped-call]
        engine.owner._begin_moving(torch.ones((), device="meta"))
    found = state(engine)
    weights = [n for n in before if n.startswith(("model/head", "optimizer/"))]
    assert [n for n in weights if not torch.equal(found[n], before[n])] == []
