"""A journal's lines -> the record of a run, in one pass and in little memory.

A run that went back to a checkpoint reports some samples twice: the later report counts, and the time of the first is counted as
lost.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.analysis.downsample import Downsampler
from harness.analysis.every_nth import EveryNth
from harness.analysis.journal_lines import bounded_lines, finite, number, parse
from harness.analysis.run_record import PARTS, TROUBLES, Kind, RunRecord, mapping
from harness.config.plain_file import open_plain

STEP_CURVES = ("train/loss", "train/lr", "train/grad_norm")
NOISE, NOISE_MOMENTS = "batch/noise_scale_samples", "batch/noise_scale_moments_samples"
WINDOW_CURVES = (
    "batch/global_samples",
    NOISE,
    NOISE_MOMENTS,
    "throughput/samples_per_s",
    "throughput/mfu_pct",
    "memory/gpu_peak_reserved_gib",
    "memory/host_rss_gib",
    "train/update_to_param_ratio",
)
LAST_S = 253_370_764_800
"""The start of the year 9999, in Unix seconds."""
KNOTS = 150
"""About how many windows tell at which samples the run was at which step and time."""
PLACES = 64
"""How many positions are kept of each kind of event; there may be any number of events."""


@dataclass
class _Teller:
    """The record as far as the journal has been read."""

    plan: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    samples: int = 0
    reason: str | None = None
    message: str = ""
    starts: int = 0
    thin: defaultdict[str, Downsampler] = field(default_factory=lambda: defaultdict(Downsampler))
    kinds: dict[str, Kind] = field(default_factory=dict)
    losses: EveryNth[tuple[int, float]] = field(default_factory=EveryNth)
    evals: dict[str, EveryNth[tuple[int, float]]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    window: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    pauses: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    trained: float = 0.0
    wall: float = 0.0
    before: float = 0.0
    knots: EveryNth[tuple[int, int, float]] = field(default_factory=lambda: EveryNth(KNOTS))
    comm_known: bool = True
    discarded: list[tuple[int, int]] = field(default_factory=list)
    highest: float = 0.0
    noises: EveryNth[tuple[float, float, float]] = field(default_factory=EveryNth)

    def tell(self, line: Mapping[str, Any]) -> None:
        """Take in one line of the journal."""
        kind, samples = line["event"], line["samples"]
        if kind == "step":
            self._curves(STEP_CURVES, line, samples)
        elif kind == "start":
            self._start(line, samples)
        elif kind == "window":
            self._window(line, samples)
        elif kind == "eval":
            self._eval(line, samples)
        elif kind == "notice":
            if line.get("code") == "roll_back" and samples < self.samples:
                self.discarded = [*self.discarded[1 - PLACES :], (samples, self.samples)]
            self._event(str(line.get("code")), line, str(line.get("message")))
        elif kind == "checkpoint":
            self._event("checkpoint", line, f"saved in {number(line.get('seconds')):.2f} s, {number(line.get('bytes')):,.0f} bytes")
        elif kind == "end":
            self.reason, self.message = str(line.get("reason")), str(line.get("message", ""))
            if self.reason in ("failed", "guard", "unsaved"):
                self._event(self.reason, line, self.message)
        self.step, self.samples = line["step"], samples

    def _start(self, line: Mapping[str, Any], samples: int) -> None:
        self._fold()
        self.plan, self.config, self.about = mapping(line.get("plan")), mapping(line.get("config")), dict(line)
        self.starts, self.reason, self.message = self.starts + 1, None, ""
        for thin in self.thin.values():
            thin.rewind(samples)
        self.knots.drop_while(lambda row: row[0] > samples)
        for told in (self.losses, *self.evals.values()):
            told.drop_while(lambda row: row[0] > samples)

    def _curves(self, names: Iterable[str], line: Mapping[str, Any], samples: int) -> None:
        for name in names:
            value = line.get(name)
            if value is not None:
                self.thin[name].add(samples, value if type(value) is float else number(value))

    def _window(self, line: Mapping[str, Any], samples: int) -> None:
        self._curves(WINDOW_CURVES, line, samples)
        self.losses.drop_while(lambda row: row[0] >= samples)
        self.losses.add((samples, number(line.get("train/loss"))))
        self.wall = max(self.wall, finite(line.get("progress/wall_s")))
        self.knots.drop_while(lambda row: row[0] >= samples)
        self.knots.add((samples, line["step"], self.before + self.wall))
        before, self.trained = self.trained, finite(line.get("progress/train_s", self.trained))
        lap, comm = max(self.trained - before, 0.0), line.get("throughput/comm_wait_pct")
        data = lap * finite(line.get("throughput/data_wait_pct")) / 100
        waited = lap * finite(comm) / 100
        self.comm_known = self.comm_known and comm is not None
        for part, seconds in (("data", data), ("comm", waited), ("compute", max(lap - data - waited, 0.0))):
            self.seconds[part] += seconds
        self._pauses(line)
        if line.get("train/lr") is not None:
            rate = number(line["train/lr"])
            self.highest = max(self.highest, rate)
            self.noises.add((rate, number(line.get(NOISE)), number(line.get(NOISE_MOMENTS))))
        self.window = line

    def _eval(self, line: Mapping[str, Any], samples: int) -> None:
        self._pauses(line)
        for name, value in line.items():
            if name.startswith("eval/") and value is not None:
                told = self.evals.setdefault(name, EveryNth())
                told.drop_while(lambda row: row[0] >= samples)
                told.add((samples, number(value)))
        if line.get("best"):
            self.best = {n: number(v) for n, v in line.items() if n.startswith("eval/") and v is not None}

    def _pauses(self, line: Mapping[str, Any]) -> None:
        names = list(line)
        if names != self.names:  # nearly all lines have the same
            self.names, self.paused = names, [name for name in names if name.startswith("pause/")]
        for name in self.paused:
            self.pauses[name[len("pause/") : -len("_s")]] = finite(line[name])

    def _fold(self) -> None:
        """The process that wrote the lines so far has ended: its pauses are final, and the next process's clock begins at 0."""
        for name, seconds in self.pauses.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.before += self.wall
        self.pauses, self.trained, self.wall = {}, 0.0, 0.0

    def _event(self, code: str, line: Mapping[str, Any], message: str) -> None:
        before, samples, place = self.kinds.get(code), line["samples"], (line["samples"], line["step"])
        if before is None:
            self.kinds[code] = Kind(code, 1, samples, samples, (place,), message)
            return
        places = before.places + (() if place == before.places[-1] else (place,))
        self.kinds[code] = Kind(
            code,
            before.count + 1,
            min(before.first, samples),
            samples,
            places if len(places) <= PLACES else (*places[:-1:2], place),
            message,
        )

    def story(self, name: str, folder: str) -> RunRecord:
        """The record, after the last line."""
        self._fold()
        last = {name: None if value is None else number(value) for name, value in self.window.items() if "/" in name}
        lost = min(finite(last.get("reliability/lost_s")), self.seconds["compute"])
        back = min(finite(last.get("reliability/rolled_back_s")), lost)
        self.seconds |= {"lost": lost - back, "rolled_back": back, "compute": self.seconds["compute"] - lost}
        noises = self.noises.rows()
        column = 1 if any(math.isfinite(row[1]) for row in noises) else 2
        high = [row[column] for row in noises if row[0] >= self.highest / 2]
        return RunRecord(
            name=name,
            folder=folder,
            plan=self.plan,
            config=self.config,
            parameters=number(self.about.get("parameters", 0)),
            device=str(self.about.get("device", "")),
            estimator=str(self.about.get("estimator", "none")),
            step=self.step,
            samples=self.samples,
            reason=self.reason,
            message=self.message,
            starts=self.starts,
            curves={name: thin.curve() for name, thin in self.thin.items()},
            kinds=sorted(self.kinds.values(), key=_seriousness),
            losses=self.losses.rows(),
            evals={name: told.rows() for name, told in self.evals.items()},
            best=self.best,
            last=last,
            seconds=self.seconds,
            comm_known=self.comm_known,
            high_noise=[noise for noise in high if math.isfinite(noise)],
            high_windows=len(high),
            discarded=self.discarded,
            knots=self.knots.rows(),
            began=_when(number(self.about.get("began"))),
            environment=mapping(self.about.get("environment")),
        )


def _when(seconds: float) -> float | None:
    """A Unix time that a calendar date exists for."""
    return seconds if 0 <= seconds < LAST_S else None


def read_story(name: str, lines: Iterable[bytes], folder: str = "RUN") -> RunRecord | None:
    """The record of a run from its journal's lines, or None if no run has started in it. A line that is no event is left out."""
    reporter = _Teller()
    for line in parse(lines):
        reporter.tell(line)
    return reporter.story(name, folder) if reporter.starts else None


def story_of(name: str, journal: Path) -> RunRecord | None:
    """The record of a run from the file `journal`, in little memory however long its lines. Raises OSError."""
    with open_plain(journal) as file:
        return read_story(name, bounded_lines(file), str(journal.parent))


def _seriousness(kind: Kind) -> tuple[int, int]:
    return (TROUBLES.index(kind.code) if kind.code in TROUBLES else len(TROUBLES) + (kind.code == "checkpoint"), kind.first)
