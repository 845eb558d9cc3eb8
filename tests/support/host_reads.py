"""What would make the host wait for a GPU, found on a CPU: each read of a tensor's value, and each number copied to the device.

On a CPU these cost nothing and are not seen. Here two modes of torch stand between the code and its tensors. One sees the calls
from Python (`bool(t)`, `t.tolist()`, `torch.tensor(3.0, device=...)`), the other the operations that those lead to, whoever calls
them (`aten::item` from C++, `nonzero`).
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.data.feed import Micro
from harness.distributed.process_group import peers
from harness.engine.interface import Limit
from tests.unit.test_gpu_branches import micro

READS = {
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.unique, Tensor.equal, Tensor.allclose,
    Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__complex__, Tensor.__array__, Tensor.__contains__,
    torch.nonzero, torch.unique, torch.equal, torch.allclose, torch.masked_select,
}  # fmt: skip
"""What brings a value to the host, or needs one for the size of its result."""
COPIES = {torch.tensor, torch.as_tensor, torch.asarray}
"""What copies numbers of the host to a device, and waits for it, unless they are given a tensor."""
OPERATIONS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
"""READS, as operations."""


class _Calls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in READS or (func in COPIES and options.get("device") is not None and not isinstance(args[0], Tensor)):
            self.found.append(f"{func.__name__}: {_caller()}")
        return func(*args, **options)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname in OPERATIONS:
            self.found.append(f"{func}: {_caller()}")
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """The line of ours, or else of the program, that asks."""
    frames = [f for f in traceback.extract_stack() if "host_reads" not in f.filename]
    ours = [f for f in frames if "/harness/" in f.filename] or frames
    return f"{ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}"


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Gives a list, to which each read of a value inside the context is added, with the line that reads it."""
    found: list[str] = []
    with _Operations(found), _Calls(found):
        yield found


def steps_read(engine: Any, passes: int, limit: Limit | None) -> list[str]:
    """The reads in five steps of an engine, after two that it may set things up in; the last step closes a window."""
    for number in range(2):
        engine.step(_micros(number, passes), 0.01, False, close=number == 1, limit=limit)
    engine.meters.syncs = 0
    with host_reads() as found:
        for number in range(2, 7):
            engine.step(_micros(number, passes), 0.01, False, close=number == 6, limit=limit)
    return found


def _micros(number: int, passes: int) -> list[Micro]:
    rank, ranks = peers()
    return [micro(ranks * passes * number + passes * rank + one) for one in range(passes)]
