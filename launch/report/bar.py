"""The bar over the curves: one legend for all charts, and what the script needs to change their x-axis. Pure.

Without the script it is the legend alone.
"""

import json
import math
from collections.abc import Sequence

from harness.analysis.run_record import RunRecord
from launch.report.chart import COLOURS
from launch.report.markup import Html, element

AXES = ("samples", "steps", "wall-clock time")
ZOOM = (("earlier", "←"), ("zoom out", "−"), ("zoom in", "+"), ("later", "→"), ("whole run", "whole"))
HOW = "drag across a chart, or + − 0 and Shift with ← → on its keys, to look closer"


def bar(stories: Sequence[RunRecord]) -> list[Html]:
    """The heading of the curves, and the bar."""
    over = element("span", {"class": "over"}, AXES[0])
    knots = json.dumps([_knots(s) for s in stories], separators=(",", ":"), allow_nan=False)
    tools = element("form", {"class": "tools", "hidden": "", "data-knots": knots}, _axes(), _zoom())
    legend = [element("ul", {"class": "legend"}, *[_key(s, n) for n, s in enumerate(stories)])] if len(stories) > 1 else []
    return [element("h2", {}, "Curves over ", over), element("div", {"class": "controls"}, *legend, tools)]


def _knots(s: RunRecord) -> list[tuple[int, int, float]]:
    """Where the run was at which step and second, from its beginning."""
    return [(0, 0, 0.0), *[(samples, step, round(s, 2)) for samples, step, s in s.knots if math.isfinite(s)]]


def _axes() -> Html:
    """The x-axis of all charts: one stop of the Tab key."""
    parts = []
    for name in AXES:
        button = {"type": "radio", "name": "over", "value": name} | ({"checked": ""} if name == AXES[0] else {})
        parts.append(element("label", {}, element("input", button), name))
    return element("fieldset", {}, element("legend", {}, "over"), *parts)


def _zoom() -> Html:
    keys = [
        element("button", {"type": "button", "aria-label": name, "title": name, "data-zoom": name}, sign) for name, sign in ZOOM
    ]
    return element("span", {"class": "zoom", "title": HOW}, *keys)


def _key(s: RunRecord, number: int) -> Html:
    swatch = element("i", {"class": f"swatch c{number % COLOURS}"})
    return element("li", {}, element("button", {"type": "button", "aria-pressed": "true", "data-run": str(number)}, swatch, s.name))
