"""Plots as files, by matplotlib, the one file that knows it; if it is not installed, a message says so, and the plot is text."""

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from harness.analysis.text_plot import Curve, Panel, as_text
from harness.supervision.safe_files import write_own

WITHOUT = "no plot file: matplotlib is not installed (pip install 'widebatch[report]'); as text:"


def what_is_missing() -> str:
    """A note, before work that ends in a plot, that matplotlib is missing; nothing if it is installed."""
    if find_spec("matplotlib") is not None:
        return ""
    return "note: plots will be text, as matplotlib is not installed: pip install 'widebatch[report]'"


def save(panels: Sequence[Panel], path: Path) -> str:
    """Draw the panels side by side into `path`.svg and .png; returns the text to print."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "\n\n".join([WITHOUT, *(as_text(p) for p in panels)])
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for curve in panel.curves:
            _draw(axes, curve)
        if panel.log_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for c in panel.curves if not c.line for x, _, _ in c.points})
            axes.set_xticks(ticks, [f"{x:,.4g}" if x < 1e4 else f"{x:,.0f}" for x in ticks])
        if panel.log_y:
            axes.set_yscale("log")
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.grid(True, alpha=0.3)
        axes.legend()
    files = [path.with_suffix(end) for end in (".svg", ".png")]
    for file in files:
        drawn = BytesIO()
        figure.savefig(drawn, format=file.suffix.removeprefix("."), dpi=150)
        write_own(file, drawn.getvalue())
    return f"plot: {files[0]}, {files[1].name}"


def _draw(axes: "object", curve: Curve) -> None:
    xs, ys, spreads = zip(*curve.points, strict=True) if curve.points else ((), (), ())
    if curve.line:
        axes.plot(xs, ys, "--", linewidth=1, label=curve.label)  # type: ignore[attr-defined]
    else:
        axes.errorbar(xs, ys, yerr=spreads, marker="o", capsize=3, label=curve.label)  # type: ignore[attr-defined]
