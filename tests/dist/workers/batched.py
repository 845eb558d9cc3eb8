"""A recipe whose samples and batches are of every type that people use."""

from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from harness.recipes.base import Recipe, Split, Sum

Old = namedtuple("Old", "x y")
ROWS, WIDTH = 64, 4


class New(NamedTuple):
    """A named tuple with types."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class Frozen:
    """A dataclass that nothing may be assigned to."""

    x: Tensor
    y: Tensor
    source: str = "disk"

    def __post_init__(self) -> None:
        if self.source != "disk":
            raise ValueError(self.source)


class Sampled(UserDict):  # type: ignore[type-arg]
    """A dict of one's own, as transformers' BatchEncoding is."""


class Graph:
    """A type that knows how to go to a device, as a graph does."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.moved = x, y, False

    def to(self, device: torch.device) -> "Graph":
        """Go there."""
        self.x, self.y, self.moved = self.x.to(device), self.y.to(device), True
        return self


class Rows:
    """Samples of a type."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.x = kind, torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, number: int) -> Any:
        x = self.x[number].double() if self.kind != "graph" else self.x[number]
        return wrapped(self.kind if self.kind in ("old", "new", "frozen") else "dict", x, x.sum(), number)


def wrapped(kind: str, x: Tensor, y: Tensor, number: int = 0) -> Any:
    """Two tensors in a container, and with some of them what is not a tensor."""
    match kind:
        case "old":
            return Old(x, y)
        case "new":
            return New(x, y)
        case "frozen":
            return Frozen(x, y)
        case "ordered":
            return OrderedDict(y=y, x=x)
        case "default":
            return defaultdict(list, x=x, y=y)
        case "user":
            return Sampled(x=x, y=y, name=f"row {number}", box=None)
        case "space":
            return SimpleNamespace(x=x, y=y)
        case "nested":
            return {"x": [New(x, y), None, ("a", 1)], "y": deque([y], 3)}
        case "graph":
            return Graph(x, y)
        case _:
            return {"x": x, "y": y}


def parts(batch: Any) -> tuple[Any, Tensor]:
    """x and y of a batch."""
    if isinstance(batch, OrderedDict):
        batch.move_to_end("y")
    if isinstance(batch, dict) and isinstance(batch["x"], list):
        return batch["x"][0].x, batch["y"][0]
    return (batch["x"], batch["y"]) if isinstance(batch, dict | UserDict) else (batch.x, batch.y)


@dataclass(frozen=True)
class Batched(Recipe):
    """Linear regression on batches of a type."""

    kind: str = "dict"
    workers: int = 0

    def model(self) -> nn.Module:
        """[n, WIDTH] -> [n, 1]."""
        return nn.Linear(WIDTH, 1)

    def data(self, split: Split) -> Rows:
        """Rows and their sums, in float64."""
        return Rows(self.kind, int(split == "train"))

    def collate(self, samples: list[Any]) -> Any:
        """A batch of the type."""
        pairs = [parts(sample) for sample in samples]
        x, y = torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
        if self.kind == "packed":
            return {"x": pack_sequence([x[n].repeat(1 + n % 3, 1) for n in range(len(x))], enforce_sorted=False), "y": y}
        return wrapped(self.kind, x, y)

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error, of a packed sequence's first rows."""
        x, y = parts(batch)
        if isinstance(x, PackedSequence):
            rows, _ = nn.utils.rnn.pad_packed_sequence(x, batch_first=True)
            x = rows[:, 0]
        return (model(x).squeeze(1) - y).square().sum(), len(y)
