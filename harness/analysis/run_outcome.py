"""What a run's journal says of how the run went: its end, its evaluations, its noise scale. For comparing many runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.analysis.journal_lines import finite, number, read

TOLD = ("complete", "early_stop", "guard")
"""The reasons of an end after which a run does not continue."""


@dataclass(frozen=True)
class Seen:
    """One evaluation: optimizer steps and samples before it, and its metrics by name."""

    step: int
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    `noise` holds (samples, noise scale in samples) of its windows; `notices` holds the codes of the notices that it reported.
    """

    reason: str
    message: str
    steps: int
    samples: int
    evaluations: tuple[Seen, ...]
    losses: tuple[tuple[int, float], ...]
    noise: tuple[tuple[int, float], ...]
    notices: frozenset[str]
    trained_s: float
    nonfinite_steps: int
    spikes: int

    def last(self, metric: str) -> float | None:
        """The metric at the end of the run; None if the guard stopped it or it is not finite."""
        found = self.evaluations[-1].metrics.get(metric) if self.evaluations and self.reason != "guard" else None
        return found if found is not None and math.isfinite(found) else None

    def reached(self, metric: str, value: float, *, higher: bool) -> Seen | None:
        """The first evaluation that met the target; None if none did."""
        for seen in self.evaluations:
            found = seen.metrics.get(metric, math.nan)
            if (found >= value) if higher else (found <= value):
                return seen
        return None

    def noise_scale(self, until: int | None = None) -> float | None:
        """Median of the windows' noise scales, in samples, up to `until` samples; None if it was not measured."""
        found = [scale for samples, scale in self.noise if until is None or samples <= until]
        return median(found) if found else None


def outcome(journal: Path, *, cut: bool = False) -> Outcome | None:
    """How the run of a journal went; None while it is not over (or there is no journal).

    `cut`: an end by stop_after_steps counts as over, too.
    """
    if not journal.is_file():
        return None
    lines = list(read(journal, steps=False))
    end = next((line for line in reversed(lines) if line["event"] in ("end", "start")), None)
    if end is None or end["event"] == "start" or end.get("reason") not in (*TOLD, *(("stop_after_steps",) if cut else ())):
        return None
    windows = {line["samples"]: line for line in lines if line["event"] == "window"}  # of repeats the last
    last: dict[str, Any] = next(reversed(windows.values()), {})
    evaluations = {line["samples"]: line for line in lines if line["event"] == "eval"}
    return Outcome(
        reason=end["reason"],
        message=str(end.get("message", "")),
        steps=end["step"],
        samples=end["samples"],
        evaluations=tuple(Seen(line["step"], line["samples"], _numbers(line)) for line in evaluations.values()),
        losses=tuple((samples, number(line.get("train/loss"))) for samples, line in windows.items()),
        noise=_noise(windows, "batch/noise_scale_samples") or _noise(windows, "batch/noise_scale_moments_samples"),
        notices=frozenset(str(line.get("code")) for line in lines if line["event"] == "notice"),
        trained_s=finite(last.get("progress/trained_s")),
        nonfinite_steps=int(finite(last.get("stability/nonfinite_steps"))),
        spikes=int(finite(last.get("stability/spikes"))),
    )


def _noise(windows: Mapping[int, Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    return tuple((samples, scale) for samples, line in windows.items() if (scale := finite(line.get(name))))


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation as numbers; the journal writes a value that is not finite as text."""
    return {name: number(value) for name, value in line.items() if name.startswith("eval/") and value is not None}
