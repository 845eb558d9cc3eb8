"""What files of tokens of any size cost a run of two ranks: anonymous memory, the start, and waiting for data.

`python -m tests.bench.tokens` writes configs/results/tokens.json. Each round starts each kind once, by torchrun: a model alone (one
row in memory, again and again), causal_lm on its 4 MB of text, tokens in a .bin of 4 MB, of 2 GB and, sparse, of 100 GB, and of
2 GB under a table of pairs in place of a model, whose step takes about a millisecond.
The start is from the command to the second step, also in CPU seconds of a rank, which a busy machine does not stretch. Memory is
that of the rank that has more (RssAnon), at the last step. Waiting is the share of the time of all steps but the first: rows of
about 500 steps are gathered at once. Medians of the rounds.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.columns import Table
from harness.recipes.base import Split, Sum
from harness.recipes.causal_lm import CausalLM
from harness.recipes.tokens import Tokens
from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT, environ

OUT = ROOT / "configs" / "results" / "tokens.json"
ROUNDS, STEPS, CONTEXT = 3, 1600, 64
SIZES = {"4 MB": 4 << 20, "2 GB": 2 << 30, "100 GB": 100 << 30}
SPARSE = "100 GB"
FAST = "tokens, 2 GB, a table of pairs"
MODEL = ["n_layer=1", "n_embd=32", "n_head=2", "n_positions=64", "vocab_size=256"]


def told(calls: int) -> None:
    """Write down what a rank has taken at its first training step, and at its last."""
    if calls not in (2, STEPS):
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    anon = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert anon is not None
    row = {"calls": calls, "at": time.time(), "cpu_s": used.ru_utime + used.ru_stime, "anon_mb": int(anon[1]) / 1e3}
    with Path(os.environ["MEASURED"]).open("a") as out:
        out.write(json.dumps(row) + "\n")


class Counted(nn.Module):
    """The model of a recipe, which counts its training passes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, **given: Any) -> Any:
        """See the model's."""
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            told(self.calls)
        return self.inner(**given)


@dataclass(frozen=True)
class FromFiles(Tokens):
    """The recipe tokens."""

    def model(self) -> nn.Module:
        """See Tokens.model."""
        return Counted(super().model())


class Pairs(nn.Module):
    """The logits of the next token by the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 256)

    def forward(self, input_ids: Tensor, **given: Any) -> Any:
        """[n, context] -> [n, context, 256]."""
        return SimpleNamespace(logits=self.table(input_ids))


@dataclass(frozen=True)
class Fast(Tokens):
    """The recipe tokens with a model of a millisecond."""

    def model(self) -> nn.Module:
        """See Tokens.model."""
        return Counted(Pairs())


@dataclass(frozen=True)
class FromText(CausalLM):
    """The recipe causal_lm."""

    def model(self) -> nn.Module:
        """See CausalLM.model."""
        return Counted(super().model())


@dataclass(frozen=True)
class Alone(CausalLM):
    """Its model, on a row of nothing."""

    def model(self) -> nn.Module:
        """See CausalLM.model."""
        return Counted(super().model())

    def data(self, split: Split) -> Table:
        """A row, as often as it is asked for."""
        rows = torch.zeros(1, dtype=torch.int64).expand(100_000)
        return Table({"row": rows})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """See CausalLM.loss."""
        count = len(batch["row"])
        rows = {"tokens": torch.ones(count, CONTEXT + 1, dtype=torch.int32), "length": torch.full((count,), CONTEXT + 1)}
        return super().loss(model, rows)


def started(folder: Path, recipe: dict[str, Any]) -> dict[str, float]:
    """One run of two ranks."""
    tree = {
        "recipe": {"kind": "gpt2", "overrides": MODEL, "context": CONTEXT, **recipe},
        "batch": {"reference": 2, "total": 2},
        "optim": {"name": "sgd", "lr": 1e-3},
        "schedule": {"samples": 2 * STEPS},
        "watch": {"wandb": "off", "every_steps": 50},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "harness", str(folder / "run.yaml")]
    begin = time.time()
    measured = folder / "measured"
    subprocess.run(argv, cwd=ROOT, env=environ() | {"MEASURED": str(measured)}, check=True, capture_output=True)
    rows = [json.loads(line) for line in measured.read_text().splitlines()]
    windows = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    last = [w for w in windows if w["event"] == "window"][1:]  # the first has the first step
    first = [row for row in rows if row["calls"] == 2]
    return {
        "start_s": max(row["at"] for row in first) - begin,
        "start_cpu_s": max(row["cpu_s"] for row in first),
        "anon_mb": max(row["anon_mb"] for row in rows if row["calls"] == STEPS),
        "data_wait_pct": waited(last),
        "step_ms": 1e3 * (last[-1]["progress/train_s"] - last[0]["progress/train_s"]) / (last[-1]["step"] - last[0]["step"]),
    }


def waited(windows: list[dict[str, Any]]) -> float:
    """The share of the windows' time, less the first's, that steps waited for data."""
    times: list[float] = [w["progress/train_s"] for w in windows]
    spent = [after - before for before, after in pairwise(times)]
    shares: list[float] = [w["throughput/data_wait_pct"] for w in windows[1:]]
    return sum(a * b for a, b in zip(spent, shares, strict=True)) / sum(spent)


def table(record: dict[str, Any]) -> str:
    """The READMEs' table of a record."""
    heads = ("data", "CPU seconds to the second step", "anonymous memory of a rank, MB", "waiting for data, %", "step, ms")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        numbers = (f"{row['start_cpu_s']:.1f}", f"{row['anon_mb']:.0f}", f"{row['data_wait_pct']:.2f}", f"{row['step_ms']:.1f}")
        lines.append(f"| {row['data']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the record."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        random = np.random.default_rng(0)
        kinds: dict[str, dict[str, Any]] = {
            "the model alone": {"use": f"{__file__}:Alone"},
            "causal_lm": {"use": f"{__file__}:FromText"},
        }
        for size, length in SIZES.items():
            path = place / f"{size.replace(' ', '')}.bin"
            with path.open("wb") as out:
                if size == SPARSE:
                    out.truncate(length)
                for _ in range(0 if size == SPARSE else length >> 22):
                    out.write(random.integers(0, 256, 1 << 21, np.uint16).tobytes())
            kinds[f"tokens, {size}"] = {"use": f"{__file__}:FromFiles", "data": str(path)}
        kinds[FAST] = kinds["tokens, 2 GB"] | {"use": f"{__file__}:Fast"}
        rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, recipe in kinds.items():
                with tempfile.TemporaryDirectory() as folder:
                    rounds[kind].append(started(Path(folder), recipe))
                print(kind, rounds[kind][-1], flush=True)
        rows = [
            {"data": kind} | {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
            for kind, found in rounds.items()
        ]
    record = {
        "command": "python -m tests.bench.tokens",
        "machine": machine(),
        "rounds": ROUNDS,
        "steps": STEPS,
        "ranks": 2,
        "rows": rows,
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
