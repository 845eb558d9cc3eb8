"""Axes: where a value lies between 0 and 1, and which round numbers stand beside. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM = 20.0
"""Values that span at least this factor are shown on a logarithmic axis."""
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, which differ; `log` where equal factors are equal lengths."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`. What is not positive lies far below a logarithmic axis."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -1.0

    def ticks(self, requested: int = 5) -> list[float]:
        """About `requested` round values on the axis, at least two on a linear one."""
        return _log_ticks(self.low, self.high, requested) if self.log else _ticks(self.low, self.high, requested)


def axis(values: Sequence[float], *, zero: bool = False, log: bool | None = None) -> Axis:
    """An axis that shows all `values`, with a little room; `zero`: from 0. `log` None: where they are positive and far apart."""
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if log is None:
        log = not zero and low > 0 and high / low >= LOG_FROM
    if log and low > 0:
        room = max(math.log(high / low), 0.1) * 0.05
        return Axis(low * math.exp(-room), high * math.exp(room), log=True)
    low = min(low, 0.0) if zero else low
    size = max(abs(low), abs(high))
    room = (high - low) * 0.06 if high - low > 1e-9 * size else size * 0.1 or 1.0
    return Axis(low if zero and low >= 0 else low - room, high + room)


def _ticks(low: float, high: float, requested: int) -> list[float]:
    rough = (high - low) / max(requested, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, requested: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) >= min(requested, 4):
            break
    if len(found) < 2:
        return _ticks(low, high, requested)
    return found[:: max(1, round(len(found) / (requested + 1)))]


def short(value: float | None) -> str:
    """A number for people, in a few characters: 1,437, 43.1k, 0.0499, 1.2e-05; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    if size >= 10_000:
        return next(_trimmed(value / unit) + prefix for unit, prefix in _PREFIXES if size >= unit)
    if value == int(value):
        return f"{int(value):,}"
    return _trimmed(value) if size >= 1e-3 else f"{value:.3g}"


def labels(ticks: Sequence[float]) -> list[str]:
    """Evenly spaced ticks in as many digits as tell them apart, all in one unit."""
    size = max(map(abs, ticks), default=0.0)
    if not 1e-3 <= size < 1e15:
        return [short(t) for t in ticks]
    unit, prefix = next(((u, p) for u, p in _PREFIXES if size >= max(u, 10_000)), (1.0, ""))
    for places in range(7):
        texts = [f"{t / unit:,.{places}f}" for t in ticks]
        if all(abs(float(text.replace(",", "")) - t / unit) <= 1e-9 * size / unit for text, t in zip(texts, ticks, strict=True)):
            return [text + prefix if t else "0" for text, t in zip(texts, ticks, strict=True)]
    return [short(t) for t in ticks]


def _trimmed(value: float) -> str:
    """Three significant digits, or all before the point; no trailing zeros."""
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 4
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def clock(seconds: float) -> str:
    """A length of time: 0.12 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
