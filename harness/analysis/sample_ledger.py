"""Which part of the sample stream each step of a run took, by its journal's lines of single steps.

A step that a roll-back or a restart has undone is reported again, at its number or another: the first of the two counts as undone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.analysis.journal_lines import number, read

TROUBLES = ("spike", "nonfinite", "nonfinite_samples", "spared", "loss_scale")
"""Codes of notices about one step."""


@dataclass(frozen=True)
class StepSpan:
    """A step took positions [start, stop) of the stream. `undone`: its update is not part of the run's final weights.

    `notices`: the notices about this step, such as a spike.
    """

    step: int
    start: int
    stop: int
    loss: float
    undone: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """All steps of a run in the order in which they were taken. `dataset`: its training samples, None if no line says."""

    steps: list[StepSpan]
    dataset: int | None


def read_ledger(journal: Path) -> Ledger:
    """The ledger of a journal. Raises OSError."""
    dataset: int | None = None
    lines = list[dict[str, Any]]()
    for line in read(journal):
        if line["event"] in ("start", "step", "notice"):
            lines.append(line)
        if line["event"] == "start" and type(line.get("dataset")) is int:
            dataset = line["dataset"]
    return Ledger(_spans(lines), dataset)


def _spans(lines: Iterable[dict[str, Any]]) -> list[StepSpan]:
    taken: list[StepSpan] = []
    kept: dict[int, int] = {}  # number of each step that is not undone so far -> its place in `taken`
    for line in lines:
        goes_back = line["event"] == "start" or line.get("code") == "roll_back"
        last = line["step"] if goes_back else line["step"] - 1 if line["event"] == "step" else None
        while last is not None and kept and next(reversed(kept)) > last:
            _, place = kept.popitem()
            taken[place] = replace(taken[place], undone=True)
        if line["event"] == "step":
            kept[line["step"]] = len(taken)
            taken.append(_span(line))
        elif line.get("code") in TROUBLES and line["step"] in kept:
            place = kept[line["step"]]
            taken[place] = replace(taken[place], notices=(*taken[place].notices, f"{line['code']}: {line.get('message')}"))
    return taken


def _span(line: dict[str, Any]) -> StepSpan:
    samples = line.get("batch/samples", 0)
    count = samples if isinstance(samples, int | float) and 0 <= samples <= line["samples"] else 0
    return StepSpan(line["step"], line["samples"] - int(count), line["samples"], number(line.get("train/loss")))


def holding(steps: Iterable[StepSpan], positions: Iterable[int]) -> Iterator[StepSpan]:
    """The steps that took any of `positions`, in the order in which they were taken."""
    wanted = sorted(positions)
    for span in steps:
        if any(span.start <= position < span.stop for position in wanted):
            yield span
