"""The contents of a plot, whatever draws it; and a plot as plain text, for terminals and where matplotlib is missing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MARKS = "ox+*#@%&"


@dataclass(frozen=True)
class Curve:
    """Points (x, y) with their spread (same unit as y, 0 for none). `line`: a computed curve, drawn without marks."""

    label: str
    points: tuple[tuple[float, float, float], ...]
    line: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. Logarithmic axes show positive values only."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = True
    log_y: bool = False


def as_text(panel: Panel, width: int = 72, height: int = 16) -> str:
    """The panel in characters: a mark per curve, the axes' ends, the labels below."""
    shown = [(n, c) for n, c in enumerate(panel.curves) if not c.line]
    points = [(n, x, y) for n, c in shown for x, y, _ in c.points if _can(x, panel.log_x) and _can(y, panel.log_y)]
    if not points:
        return f"{panel.title}: nothing to show"
    margin, lines = _drawn(panel, points, width, height)
    left, right = _number(min(x for _, x, _ in points)), _number(max(x for _, x, _ in points))
    scale = " (log)" if panel.log_x else ""
    axis = f"{left}{f'{panel.x}{scale}'.center(width - len(left) - len(right))}{right}"
    legend = "   ".join(f"{MARKS[n % len(MARKS)]} {c.label}" for n, c in shown)
    return "\n".join(
        [f"{panel.title} ({panel.y})", *lines, " " * (margin + 1) + "+" + "-" * width, " " * (margin + 2) + axis, legend]
    )


def _drawn(panel: Panel, points: Sequence[tuple[int, float, float]], width: int, height: int) -> tuple[int, list[str]]:
    """(width of the labels at the left, the lines of the plot) of points (curve, x, y)."""
    xs, ys = [_at(x, panel.log_x) for _, x, _ in points], [_at(y, panel.log_y) for _, _, y in points]
    grid = [[" "] * width for _ in range(height)]
    for (n, _, _), x, y in zip(points, xs, ys, strict=True):
        column, row = _cell(x, xs, width), height - 1 - _cell(y, ys, height)
        grid[row][column] = MARKS[n % len(MARKS)]
    top, bottom = _number(max(y for _, _, y in points)), _number(min(y for _, _, y in points))
    margin = max(len(top), len(bottom))
    labels = [top, *[""] * (height - 2), bottom]
    return margin, [f"{label:>{margin}} |{''.join(cells).rstrip()}" for label, cells in zip(labels, grid, strict=True)]


def _can(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _at(value: float, log: bool) -> float:
    return math.log(value) if log else value


def _cell(value: float, of: Sequence[float], cells: int) -> int:
    low, high = min(of), max(of)
    return round((value - low) / (high - low) * (cells - 1)) if high > low else cells // 2


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
