"""How a recipe's speed goes with the number of devices: rows from journals, efficiency, table, plot and record. Pure.

Weak scaling keeps the samples per device, so the batch grows with the devices; strong scaling keeps the global batch. Efficiency
is the speed of a device over that of the smallest world of the same kind, in percent.

The record is JSON; `measured` holds the weak rows (`plan/time_estimate.py` reads it for hours), `strong` the others, `baseline` the
samples per second that a device of the smallest world reached, for the setting watch.baseline:

    {"baseline": 1510.2, "strong": [...],
     "measured": [{"world_size": 1, "samples_per_s_per_device": 1510.2, "efficiency_pct": 100.0, ...}, ...]}
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from harness.analysis.journal_lines import finite, number, read
from harness.analysis.text_plot import Curve, Panel

Kind = Literal["weak", "strong"]
KINDS: tuple[Kind, ...] = ("weak", "strong")
MOST_PCT = 105.0
"""In percent: an efficiency above 100 but below this may be chance."""
GPU, HOST = "memory/gpu_peak_allocated_gib", "memory/host_rss_gib"


@dataclass(frozen=True)
class Speed:
    """One world measured, medians over its windows. Shares in percent of the time, None if the backend cannot tell.

    `memory_gib` is the device's peak, on a CPU the process's resident memory.
    """

    kind: Kind
    world_size: int
    global_batch: int
    samples_per_s_per_device: float
    step_ms: float
    comm_pct: float | None
    data_pct: float | None
    memory_gib: float


def speed(kind: Kind, world: int, batch: int, windows: Sequence[Mapping[str, Any]]) -> Speed | None:
    """The row of a run, None if no window has a rate: the first one, which warms up, has none."""
    timed = [w for w in windows if finite(w.get("throughput/samples_per_s")) > 0]
    if not timed:
        return None

    def middle(name: str) -> float | None:
        found = [value for w in timed if math.isfinite(value := number(w.get(name)))]
        return median(found) if found else None

    gpu = max(finite(w.get(GPU)) for w in timed)
    rate, step = middle("throughput/samples_per_s_per_device"), middle("throughput/step_p50_ms")
    assert rate is not None  # noqa: S101  a window with a rate has it per device
    return Speed(
        kind=kind,
        world_size=world,
        global_batch=batch,
        samples_per_s_per_device=rate,
        step_ms=step or 0.0,
        comm_pct=middle("throughput/comm_wait_pct"),
        data_pct=middle("throughput/data_wait_pct"),
        memory_gib=gpu or max(float(w[HOST]) for w in timed),
    )


def efficiencies(rows: Sequence[Speed]) -> dict[tuple[Kind, int], float]:
    """Efficiency in percent by (kind, world)."""
    out: dict[tuple[Kind, int], float] = {}
    for kind in KINDS:
        own = sorted((r for r in rows if r.kind == kind), key=lambda r: r.world_size)
        out |= {(kind, r.world_size): 100 * r.samples_per_s_per_device / own[0].samples_per_s_per_device for r in own}
    return out


def table(rows: Sequence[Speed]) -> str:
    """The rows for a terminal."""
    head = ("scaling", "ranks", "batch", "samples/s", "per device", "efficiency", "step", "comm", "data", "memory")
    good = efficiencies(rows)
    cells = [
        (
            r.kind,
            f"{r.world_size}",
            f"{r.global_batch:,}",
            f"{r.samples_per_s_per_device * r.world_size:,.0f}",
            f"{r.samples_per_s_per_device:,.1f}",
            f"{good[r.kind, r.world_size]:.1f} %",
            f"{r.step_ms:.3g} ms",
            _share(r.comm_pct),
            _share(r.data_pct),
            f"{r.memory_gib:.2f} GiB",
        )
        for r in rows
    ]
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in (head, *cells))


def remarks(rows: Sequence[Speed]) -> list[str]:
    """Warnings about efficiencies above 100 %."""
    good = efficiencies(rows)
    above = [f"{kind} {world}" for (kind, world), pct in good.items() if pct > MOST_PCT]
    if not above:
        return []
    return [
        f"above 100 % ({', '.join(above)} ranks): a device was faster there than in the smallest world, so efficiencies against it "
        "mean little. It may have had more work per step, another number of threads, or a busy machine: compare the step and "
        "data columns, and measure the smallest world again alone"
    ]


def panels(rows: Sequence[Speed]) -> list[Panel]:
    """Samples per second with the ideal line, and efficiency, by ranks."""
    good = efficiencies(rows)
    speeds, shares = [], []
    for kind in KINDS:
        own = sorted((r for r in rows if r.kind == kind), key=lambda r: r.world_size)
        if not own:
            continue
        first = own[0].samples_per_s_per_device
        speeds.append(Curve(kind, tuple((r.world_size, r.samples_per_s_per_device * r.world_size, 0.0) for r in own)))
        speeds.append(Curve(f"{kind}, ideal", tuple((r.world_size, first * r.world_size, 0.0) for r in own), line=True))
        shares.append(Curve(kind, tuple((r.world_size, good[kind, r.world_size], 0.0) for r in own)))
    return [
        Panel("Speed", "ranks", "samples per second", tuple(speeds), log_y=True),
        Panel("Efficiency", "ranks", "percent of the smallest world's", tuple(shares)),
    ]


def to_json(rows: Iterable[Speed], about: Mapping[str, Any]) -> dict[str, Any]:
    """The record; `about` goes beside it."""
    rows = list(rows)
    good = efficiencies(rows)
    told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for row in rows:
        tree = asdict(row) | {"efficiency_pct": round(good[row.kind, row.world_size], 2)}
        told[row.kind].append({name: value for name, value in tree.items() if name != "kind"})
    first = min((r for r in rows if r.kind == "weak"), key=lambda r: r.world_size, default=None)
    baseline = None if first is None else first.samples_per_s_per_device
    return {**about, "baseline": baseline, "measured": told["weak"], "strong": told["strong"]}


def ended_windows(journal: Path) -> list[dict[str, Any]] | None:
    """The windows of a journal, None if the run has not come to its end. Raises OSError."""
    lines = list(read(journal, steps=False))
    ended = any(line["event"] == "end" and line.get("reason") in ("stop_after_steps", "complete") for line in lines)
    return [line for line in lines if line["event"] == "window"] if ended else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
