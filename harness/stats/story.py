"""What a journal tells, in one pass over its lines and in little memory: curves, events, where the time went, how it ended.

A run that went back to a checkpoint tells some samples twice: the last time counts, and the time of the first is told as lost.
"""

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from harness.stats.thin import Bucket, Thin

Losses = list[tuple[int, float]]
"""(samples, mean training loss) of each window."""
STEP_CURVES = ("train/loss", "train/lr", "train/grad_norm")
WINDOW_CURVES = ("batch/global_samples", "batch/noise_scale_samples", "throughput/samples_per_s", "train/update_to_param_ratio")
PLACES = 64
"""Places that are kept of each kind of event; there may be any number of events."""
TROUBLES = ("failed", "guard", "nonfinite", "dead", "divergence", "damaged_checkpoint", "checkpoint_failed", "rollback")
"""Codes of what went wrong, the most serious first."""
PARTS = {
    "compute": "computing",
    "data": "waiting for data (the slowest rank)",
    "comm": "waiting for other ranks (mean)",
    "lost": "computed, then thrown away by restarts",
    "start": "starting",
    "first_step": "first step, warm-up of the device",
    "eval": "evaluations",
    "checkpoint": "checkpoints",
    "count_flops": "counting operations",
}
"""Where the time of a run goes, and what it is called."""


@dataclass(frozen=True)
class Kind:
    """All events of one code: how many, the samples of the first, the last and a few between, and what the last one said."""

    code: str
    count: int
    first: int
    last: int
    places: tuple[int, ...]
    message: str


@dataclass(frozen=True)
class Story:
    """A run as its journal tells it. `curves` and `evals` go by metric; `seconds` by PARTS, of all processes of the run.

    `reason` is how it ended, None where it has not. `high_noise` holds the noise scales measured in the `high_windows`, those
    at half the highest rate or more: the scale grows as the rate falls, and it is at high rates that a batch must not pass it.
    """

    name: str
    plan: dict[str, Any]
    config: dict[str, Any]
    parameters: float
    device: str
    estimator: str
    step: int
    samples: int
    reason: str | None
    message: str
    starts: int
    curves: dict[str, list[Bucket]]
    kinds: list[Kind]
    losses: Losses
    evals: dict[str, list[tuple[int, float]]]
    best: dict[str, float]
    last: dict[str, float | None]
    seconds: dict[str, float]
    comm_known: bool
    high_noise: list[float]
    high_windows: int

    @property
    def noise_scale(self) -> float | None:
        """The median noise scale at high rates; None where fewer than half of those windows could measure one."""
        return median(self.high_noise) if len(self.high_noise) * 2 > self.high_windows else None

    @property
    def died(self) -> str:
        """Why what this run measured is no evidence: the code of what it died of, or nothing."""
        codes = {k.code for k in self.kinds}
        return next((c for c in ("dead", "divergence") if c in codes), "guard" if self.reason == "guard" else "")


@dataclass
class _Teller:
    """What has been read so far."""

    plan: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    samples: int = 0
    reason: str | None = None
    message: str = ""
    starts: int = 0
    thin: dict[str, Thin] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    losses: Losses = field(default_factory=list)
    evals: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    pauses: dict[str, float] = field(default_factory=dict)
    trained: float = 0.0
    comm_known: bool = True
    rates: "array[float]" = field(default_factory=lambda: array("d"))
    noises: "array[float]" = field(default_factory=lambda: array("d"))

    def tell(self, line: Mapping[str, Any]) -> None:
        """One line of the journal."""
        kind, place, step = line.get("event"), number(line.get("samples")), number(line.get("step"))
        if not (math.isfinite(place) and math.isfinite(step)):
            return
        samples = int(place)
        if kind == "start":
            self._start(line, samples)
        elif kind == "step":
            self._curves(STEP_CURVES, line, samples)
        elif kind == "window":
            self._window(line, samples)
        elif kind == "eval":
            self._eval(line, samples)
        elif kind == "notice":
            self._event(str(line.get("code")), samples, str(line.get("message")))
        elif kind == "checkpoint":
            self._event("checkpoint", samples, f"saved in {number(line.get('seconds')):.2f} s, {number(line.get('bytes')):,.0f} bytes")
        elif kind == "end":
            self.reason, self.message = str(line.get("reason")), str(line.get("message", ""))
            if self.reason in ("failed", "guard"):
                self._event(self.reason, samples, self.message)
        self.step, self.samples = int(step), samples

    def _start(self, line: Mapping[str, Any], samples: int) -> None:
        self._fold()
        self.plan, self.config, self.about = _mapping(line.get("plan")), _mapping(line.get("config")), dict(line)
        self.starts, self.reason, self.message = self.starts + 1, None, ""
        for thin in self.thin.values():
            thin.rewind(samples)
        for told in (self.losses, *self.evals.values()):
            while told and told[-1][0] > samples:
                told.pop()

    def _curves(self, names: Iterable[str], line: Mapping[str, Any], samples: int) -> None:
        for name in names:
            value = line.get(name)
            if value is not None:
                thin = self.thin.get(name)
                if thin is None:
                    thin = self.thin[name] = Thin()
                thin.add(samples, value if type(value) is float else number(value))

    def _window(self, line: Mapping[str, Any], samples: int) -> None:
        self._curves(WINDOW_CURVES, line, samples)
        while self.losses and self.losses[-1][0] >= samples:
            self.losses.pop()
        self.losses.append((samples, number(line.get("train/loss"))))
        before, self.trained = self.trained, number(line.get("progress/train_s", self.trained))
        lap, comm = max(self.trained - before, 0.0), line.get("throughput/comm_wait_pct")
        data = lap * number(line.get("throughput/data_wait_pct") or 0) / 100
        waited = lap * number(comm or 0) / 100
        self.comm_known = self.comm_known and comm is not None
        for part, seconds in (("data", data), ("comm", waited), ("compute", max(lap - data - waited, 0.0))):
            self.seconds[part] += seconds
        self._pauses(line)
        if line.get("train/lr") is not None:
            noise = line.get("batch/noise_scale_samples")
            self.noises.append(math.nan if noise is None else number(noise))
            self.rates.append(number(line["train/lr"]))
        self.last = {name: None if value is None else number(value) for name, value in line.items() if "/" in name}

    def _eval(self, line: Mapping[str, Any], samples: int) -> None:
        self._pauses(line)
        for name, value in line.items():
            if name.startswith("eval/") and value is not None:
                told = self.evals.setdefault(name, [])
                while told and told[-1][0] >= samples:
                    told.pop()
                told.append((samples, number(value)))
        if line.get("best"):
            self.best = {n: number(v) for n, v in line.items() if n.startswith("eval/") and v is not None}

    def _pauses(self, line: Mapping[str, Any]) -> None:
        found = {n[len("pause/") : -len("_s")]: number(v) for n, v in line.items() if n.startswith("pause/") and v is not None}
        self.pauses |= found

    def _fold(self) -> None:
        """The process so far is over: its pauses are final, and the next one's clock begins at 0."""
        for name, seconds in self.pauses.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.pauses, self.trained = {}, 0.0

    def _event(self, code: str, samples: int, message: str) -> None:
        before = self.kinds.get(code)
        if before is None:
            self.kinds[code] = Kind(code, 1, samples, samples, (samples,), message)
            return
        places = before.places + (() if samples == before.places[-1] else (samples,))
        self.kinds[code] = Kind(
            code,
            before.count + 1,
            min(before.first, samples),
            samples,
            places if len(places) <= PLACES else (*places[:-1:2], samples),
            message,
        )

    def story(self, name: str) -> Story:
        """What was told, to the end."""
        self._fold()
        lost = min(self.last.get("reliability/lost_s") or 0.0, self.seconds["compute"])
        self.seconds |= {"lost": lost, "compute": self.seconds["compute"] - lost}
        highest = max(self.rates, default=0.0)
        high = [noise for noise, rate in zip(self.noises, self.rates, strict=True) if rate >= highest / 2]
        return Story(
            name=name,
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
            losses=self.losses,
            evals=self.evals,
            best=self.best,
            last=self.last,
            seconds=self.seconds,
            comm_known=self.comm_known,
            high_noise=[noise for noise in high if math.isfinite(noise)],
            high_windows=len(high),
        )


def read_story(name: str, lines: Iterable[bytes]) -> Story | None:
    """The story that a journal's lines tell, or None where no run has started in it. A line cut by a kill is left out."""
    teller = _Teller()
    for line in parsed(lines):
        teller.tell(line)
    return teller.story(name) if teller.starts else None


def parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are whole objects."""
    for line in lines:
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        if isinstance(tree, dict):
            yield tree


def number(value: Any) -> float:
    """A journal's number: those that are not finite are written as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _seriousness(kind: Kind) -> tuple[int, int]:
    return (TROUBLES.index(kind.code) if kind.code in TROUBLES else len(TROUBLES) + (kind.code == "checkpoint"), kind.first)
