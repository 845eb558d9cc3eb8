"""Worker of test_stopped_evaluation: on each backend a run, and the same one stopped in an evaluation and resumed."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.config.loader import decode
from harness.distributed.process_group import gather, join, leave
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.bytes_lm import BytesLM
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Ended, Evaluated, Event, Noticed, Saved, Started, Stepped
from harness.training.loop import train
from tests.dist.workers.layouts import config

BACKENDS = ("ddp", "fsdp", "zero1", "zero3")
passes: list[int] = []
"""One for each pass that this rank evaluated."""
_metrics = BytesLM.metrics


def _counted(self: BytesLM, model: Any, batch: Any) -> Any:
    passes.append(1)
    return _metrics(self, model, batch)


def events_of(name: str, folder: Path, texts: str, asked: Callable[[int], bool] = lambda seen: False) -> tuple[list[Event], int]:
    """(the events of a run, the passes that it evaluated). `asked` says after so many of them whether a stop was asked for."""
    over = {"batch": {"reference": 32, "total": 8, "micro": 1}, "schedule": {"samples": 32, "shape": "constant"}}
    over |= {"scaling": {"rule": "none"}, "eval": {"every_samples": 16}, "backend": {"name": name}}
    c = decode(config("bytes_lm", "sgd", "fp32", 1, texts) | over)
    size = place(os.environ).size
    began, found = [len(passes)], []
    stop = lambda: asked(len(passes) - began[0])  # noqa: E731
    for event in train(c, plan(c, World(size, 1, "cpu", size)), cpu=True, folder=folder, stop=stop):
        if isinstance(event, Started):
            began[0] = len(passes)
        found.append(event)
    return found, len(passes) - began[0]


def told(events: list[Event]) -> list[tuple[str, float]]:
    """What was trained and evaluated, in order."""
    numbers = [(e, "train/loss" if isinstance(e, Stepped) else "eval/loss") for e in events if isinstance(e, Stepped | Evaluated)]
    return [(f"{type(e).__name__} {e.samples}", e.metrics[key] or 0.0) for e, key in numbers]


def main(folder: Path, texts: str) -> None:
    """Run all; rank 0 writes what came of it."""
    torch.set_num_threads(1)
    join(cpu=True)
    BytesLM.metrics = _counted  # type: ignore[method-assign]
    here, results = place(os.environ), {}
    for name in BACKENDS:
        straight, every = events_of(name, folder / f"straight-{name}", texts)
        last = here.rank == here.size - 1
        stopped, few = events_of(name, folder / f"run-{name}", texts, lambda seen, last=last: last and seen >= 2)  # type: ignore[misc]
        again, _ = events_of(name, folder / f"run-{name}", texts)
        results[name] = {
            "every": every,
            "few": gather(few),
            "straight": told(straight),
            "parts": [told(stopped), told(again)],
            "end": [e.reason for e in stopped if isinstance(e, Ended)],
            "saved": [e.samples for e in stopped if isinstance(e, Saved)],
            "notices": [e.code for e in stopped if isinstance(e, Noticed)],
        }
    if here.rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    end_orderly(0)
