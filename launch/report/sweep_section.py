"""A sweep in the report: curves over the batch, table and verdict, from the sweep.json it wrote. Pure but for `read`."""

import json
from pathlib import Path

from harness.analysis.downsample import Bucket
from harness.analysis.sweep_results import Results, Row, table, verdict
from harness.analysis.target_metric import Target
from harness.analysis.text_plot import Curve, Panel
from harness.config.errors import UserError
from launch.lab.sweep import panels
from launch.report.chart import COLOURS, Chart, Series, chart
from launch.report.markup import Html, element

FILE = "sweep.json"


def read(folder: Path) -> Results:
    """The sweep in `folder`. Raises UserError."""
    path = folder / FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row(**trial) for trial in tree["trials"])
        return Results(rows, int(tree["reference_batch"]), Target(**tree["target"]))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError("report", f"{path} is not a record of a sweep: {e}", "give the folder that widebatch sweep wrote") from e


def section(name: str, results: Results) -> Html:
    """The section for the report page."""
    batches = results.batches
    shown = [chart(_chart(panel, batches[0], batches[-1])) for panel in panels(results)]
    lines = [element("li", {}, line) for line in verdict(results)]
    return element(
        "section",
        {"class": "charts"},
        element("h2", {}, f"Sweep {name}: {results.target.metric.partition('/')[2]} over the batch"),
        *shown,
        element("ul", {"class": "verdict"}, *lines),
        element("div", {"class": "scroll wide"}, element("pre", {}, table(results))),
    )


def _chart(panel: Panel, low: float, high: float) -> Chart:
    """One panel; the band is one standard deviation over the seeds."""
    lines = [_series(curve, number) for number, curve in enumerate(panel.curves)]
    note = "over the global batch; band: one standard deviation of the seeds"
    unit = " steps" if panel.log_y else ""
    edges = (low / 1.1, high * 1.1)
    return Chart(panel.title, note, lines, *edges, log=panel.log_y or None, log_x=True, x_name="samples a step", unit=unit)


def _series(curve: Curve, number: int) -> Series:
    parts = [Bucket(x, x, 1, y, y - spread, y + spread, 0) for x, y, spread in curve.points]
    return Series(curve.label, number % COLOURS, parts, dash=curve.line, points=not curve.line)


def text(name: str, results: Results) -> str:
    """The sweep as text for the terminal."""
    return "\n".join([f"sweep {name}", table(results), "", *verdict(results)]) + "\n"
