"""All ranks of a run as lines of text: what `widebatch top` shows. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.analysis.journal_lines import finite, number
from harness.config.errors import printable
from harness.supervision.rank_status import RankLine
from launch.report.axes import clock, short

STALE_S = 10.0
"""A rank that runs renews its line every second; one that is older than this is called silent."""
SLOW = 1.5
"""A rank whose own time per step is so many times the median is marked slow."""
NOTE = 12
"""Characters that a note needs at least; what exceeds the line is cut."""
_TEXTS = ("host", "phase", "")
_SHARED = ("host", "GPU GiB", "host GiB", "wait %", "data %")
"""Columns that are left out where there is no room, the first of them first."""


@dataclass(frozen=True)
class Standing:
    """The run as its journal says: `plan` (plan.json), its last window's line and its last line, each empty where there is none."""

    name: str
    plan: Mapping[str, Any]
    window: Mapping[str, Any]
    last: Mapping[str, Any]

    @property
    def ended(self) -> str:
        """How the run ended, in words; empty while it runs."""
        return str(self.last.get("reason", "")).replace("_", " ") if self.last.get("event") == "end" else ""


def ranks_text(run: Standing, ranks: Sequence[RankLine], now: float, width: int, height: int | None) -> list[str]:
    """The lines, of at most `width` characters and as many as `height` (None: all). `now`: Unix time.

    Where not all ranks have room, those that need a look come first: failed, silent, slow.
    """
    lines = _head(run)
    if not ranks:
        return _cut(
            [*lines, "no rank has said anything yet: ranks write into the run folder about a second after their start"], width
        )
    busy = [r.window["busy_ms"] for r in ranks if r.window.get("busy_ms") is not None]
    usual = median([b for b in busy if b is not None]) if len(busy) > 1 else None
    notes = {r.rank: _note(r, now, usual) for r in ranks}
    room = None if height is None else max(height - len(lines) - 2, 1)
    shown = list(ranks)
    if room is not None and len(shown) > room:
        worst = sorted(ranks, key=lambda r: (notes[r.rank] in ("", "ended"), r.rank))[: max(room - 1, 1)]
        shown = sorted(worst, key=lambda r: r.rank)
    table = [_cells(r, now, notes[r.rank]) for r in shown]
    lines += _table(table, width)
    if len(shown) < len(ranks):
        lines.append(f"and {len(ranks) - len(shown):,} more ranks")
    return _cut(lines, width)


def _head(run: Standing) -> list[str]:
    """What is the same on all ranks."""
    w, total = run.window, run.plan.get("total_steps")
    step = run.last.get("step", w.get("step", 0))
    of = f" of {total:,}" if isinstance(total, int) else ""
    parts = [f"step {step:,}{of}"]
    rate = number(w.get("throughput/samples_per_s"))
    if "train/loss" in w:
        parts.append(f"loss {number(w['train/loss']):.4g}")
    if rate > 0:
        parts.append(f"{short(rate)} samples/s")
        left = finite(run.plan.get("total_samples")) - finite(run.last.get("samples"))
        if left > 0 and not run.ended:
            parts.append(f"about {clock(left / rate)} left")
    state = f"ended: {run.ended}" if run.ended else "not ended"
    lines = [f"{run.name}  {state}", "  ".join(parts)]
    lines += [_node_line(w)] if any(str(name).startswith("system/") for name, value in w.items() if value is not None) else []
    message = run.last.get("message")
    return lines + ([str(message)] if run.ended and message else [])


def _node_line(w: Mapping[str, Any]) -> str:
    """The nodes' metrics of the last window."""
    texts = (
        ("system/cpu_pct", "CPU {:.0f} %"),
        ("system/memory_pct", "memory {:.0f} %"),
        ("system/network_sent_mib_per_s", "sent {:.3g} MiB/s"),
        ("system/network_received_mib_per_s", "received {:.3g} MiB/s"),
        ("system/gpu_utilization_pct", "GPU {:.0f} %"),
        ("system/gpu_power_w", "{:.0f} W"),
        ("system/gpu_temperature_c", "{:.0f} °C"),
    )
    return "nodes: " + ", ".join(text.format(number(w[name])) for name, text in texts if w.get(name) is not None)


def _note(rank: RankLine, now: float, usual: float | None) -> str:
    """What a person should look at; empty where all is well."""
    if rank.status is not None:
        return f"exit {rank.status} {rank.text}".strip() if rank.status else "ended"
    if now - rank.time > STALE_S:
        return "silent"
    busy = rank.window.get("busy_ms")
    return "slow" if usual and busy is not None and busy > SLOW * usual else ""


def _cells(rank: RankLine, now: float, note: str) -> dict[str, str]:
    """A rank's row, by column."""
    w = rank.window
    return {
        "rank": str(rank.rank),
        "host": rank.host,
        "phase": rank.phase,
        "step": f"{rank.step:,}",
        "step ms": short(w.get("step_ms")),
        "own ms": short(w.get("busy_ms")),
        "data %": _share(w.get("data_wait_pct")),
        "wait %": _share(w.get("comm_wait_pct")),
        "host GiB": _share(w.get("host_rss_gib"), 2),
        "GPU GiB": _share(w.get("gpu_allocated_gib") or None, 2),
        "moved": f"{clock(rank.still_s)} ago",
        "heartbeat": f"{clock(max(now - rank.time, 0.0))} ago",  # clocks of hosts differ
        "": note,
    }


def _share(value: float | None, places: int = 1) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _table(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """The rows under their heads; columns that say nothing, and those for which there is no room, are left out."""
    names = [name for name in rows[0] if name == "rank" or any(row[name] not in ("", "–") for row in rows)]
    if len({row["host"] for row in rows}) == 1:
        names.remove("host")
    widths = {name: max(len(name), *(len(printable(row[name])) for row in rows)) for name in names}
    for least in _SHARED:
        if sum(min(widths[n], NOTE) if n == "" else widths[n] for n in names) + 2 * len(names) - 2 <= width:
            break
        names = [name for name in names if name != least]
    return [_row({name: name for name in names}, widths, names), *(_row(row, widths, names) for row in rows)]


def _row(cells: Mapping[str, str], widths: Mapping[str, int], names: Sequence[str]) -> str:
    """One line of the table; texts stand left, numbers right."""
    return "  ".join(cells[n].ljust(widths[n]) if n in _TEXTS else cells[n].rjust(widths[n]) for n in names).rstrip()


def _cut(lines: Sequence[str], width: int) -> list[str]:
    """Each line printable, and of at most `width` characters."""
    clean = [printable(line).replace("\n", " ") for line in lines]
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in clean]
