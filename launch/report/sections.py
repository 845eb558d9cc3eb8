"""The report's tables: runs compared, where the time went, what happened, the plans with their reasons. Pure."""

from collections.abc import Sequence
from typing import Any

from harness.analysis.compare_runs import Comparison, Row
from harness.analysis.loss_verdict import NAMES, TOLERANCE_PCT
from harness.analysis.run_record import OF_A_STEP, PARTS, TROUBLES, Kind, RunRecord
from harness.plan import plan_warnings as cautions
from launch.report.axes import clock, short
from launch.report.chart import COLOURS
from launch.report.markup import Html, element, joined

SHOWN = (
    "world_size", "nodes", "micro_batch", "accumulate", "global_batch", "reference_batch", "ratio", "rule", "reference_lr", "lr",
    "adamw_lr", "optimizer", "weight_decay", "momentum", "betas", "alpha", "eps", "ema", "clip", "warmup_samples", "warmup_steps",
    "total_samples", "total_steps", "schedule", "noise_scale", "largest_stable_lr", "backend", "precision",
)  # fmt: skip
"""Numbers of a plan in the order of their derivation; others that have a reason follow."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> Html:
    """A table; where the page is narrow, each row is a list of its cells, each after the head of its column."""
    top = element("tr", {}, *[element("th", {}, h) for h in head])
    body = [element("tr", {}, *[element("td", {"data-head": h}, cell) for h, cell in zip(head, row, strict=True)]) for row in rows]
    inner = element("table", {"class": kind}, element("thead", {}, top), element("tbody", {}, *body))
    return element("div", {"class": "scroll"}, inner)


def compared(c: Comparison) -> Html:
    """Runs at equal samples, the first as reference; one that died, where it did."""
    head = ["run", "against the reference", "k", "batch", "rule", "lr", "steps", "training loss", *[measure(m) for m in c.measures]]
    head += ["samples/s", "noise scale"]
    rows = [
        [
            element("span", {}, element("i", {"class": f"swatch c{n % COLOURS}"}), row.name),
            _verdict(row) if n else element("span", {"class": "note"}, "reference"),
            short(row.ratio),
            short(row.batch),
            row.rule,
            short(row.lr),
            short(row.steps),
            short(row.loss),
            *[short(row.evals.get(m)) for m in c.measures],
            short(row.rate),
            short(row.noise_scale),
        ]
        for n, row in enumerate(c.rows)
    ]
    by = next((NAMES[row.verdict.measure] for row in c.rows if row.verdict), "training loss")
    note = (
        f"Losses: means over the last tenth of the samples. A {by} within {TOLERANCE_PCT:g} % of the reference's matches it; one "
        "above it by no more than it varies between evaluations or windows cannot be told from it."
    )
    return element(
        "section",
        {},
        element("h2", {}, f"Compared at {c.samples:,} samples"),
        table(head, rows, "numbers"),
        element("p", {"class": "note"}, note),
    )


def measure(name: str) -> str:
    """What an evaluation's metric is called: validation loss, accuracy %."""
    short_name = name.partition("/")[2]
    told = short_name.removesuffix("_pct").replace("_", " ") + (" %" if short_name.endswith("_pct") else "")
    return "validation loss" if short_name == "loss" else told


def lowered(s: RunRecord) -> str:
    """The plan's rate, and the factor of guard and plateau on it at the end."""
    return short(s.planned("lr")) + (f" × {short(s.lr_factor)} at the end" if s.lr_factor != 1 else "")


def _verdict(row: Row) -> Html:
    if row.died or row.verdict is None:
        return element("span", {"class": "chip bad" if row.died else "chip open"}, row.against)
    kind = "good" if row.verdict.held else {"diverges from": "bad"}.get(row.verdict.answer, "open")
    return element("span", {"class": f"chip {kind}"}, row.against)


def time_bars(stories: Sequence[RunRecord]) -> Html:
    """Where each run's wall time went, all its processes together."""
    used = [part for part in PARTS if any(s.seconds.get(part, 0) > 0 for s in stories)]
    bars = []
    for s in stories:
        total = sum(s.seconds.values())
        if total <= 0:
            continue
        shares = [(part, s.seconds.get(part, 0.0)) for part in used]
        cells = [
            element(
                "span",
                {"class": f"part {part}", "style": f"width:{100 * sec / total:.3f}%", "title": _share(part, sec, total)},
            )
            for part, sec in shares
            if sec > 0
        ]
        listed = [element("li", {}, element("i", {"class": f"part {p}"}), _share(p, sec, total)) for p, sec in shares if sec > 0]
        unknown = "" if s.comm_known else "This backend does not separate the wait for other ranks from computing."
        bars.append(
            element(
                "div",
                {"class": "time"},
                element("h3", {}, f"{s.name}: {clock(total)}" + (f" in {s.starts} processes" if s.starts > 1 else "")),
                element("div", {"class": "bar"}, *cells),
                element("ul", {"class": "legend still"}, *listed),
                element("p", {"class": "note"}, unknown) if unknown else Html(""),
            )
        )
    return element("section", {}, element("h2", {}, "Where the time went"), *bars)


def _share(part: str, seconds: float, total: float) -> str:
    return f"{PARTS[part]} {clock(seconds)}, {100 * seconds / total:.3g} %"


def events(stories: Sequence[RunRecord]) -> Html:
    """What happened, the most serious first."""
    rows = [
        [s.name, element("span", {"class": f"chip {_kind(k)}"}, k.code), short(k.count), _place(k), _told(s, k)]
        for s in stories
        for k in s.kinds
    ]
    if not rows:
        return Html("")
    head = ["run", "event", "times", "at samples", "the last said"]
    return element("section", {}, element("h2", {}, "What happened"), table(head, rows, "told"))


def _kind(k: Kind) -> str:
    return "bad" if k.code in TROUBLES else "open" if k.code == "checkpoint" else "warn"


def _told(s: RunRecord, k: Kind) -> Html:
    """The last message, and where it is of a step, the command that lists its batch."""
    if k.code not in OF_A_STEP:
        return joined(k.message)
    return joined(k.message, element("br", {}), "its batch: ", element("code", {}, s.batch_of(k.places[-1][1])))


def _place(k: Kind) -> str:
    return f"{k.first:,}" if k.first == k.last else f"{k.first:,} to {k.last:,}"


def plans(stories: Sequence[RunRecord]) -> Html:
    """Each run's numbers with their reasons; open where there is one run alone."""
    return element("section", {}, element("h2", {}, "Plans"), *[_plan(s, len(stories) == 1) for s in stories])


def _plan(s: RunRecord, opened: bool) -> Html:
    names = [n for n in (*SHOWN, *(n for n in s.sources if n not in SHOWN)) if s.plan.get(n) is not None]
    rows = [[element("code", {}, n), value(s.plan[n]), s.sources.get(n, "")] for n in names]
    shown = s.warnings[: cautions.SHOWN]
    told = [element("li", {}, element("span", {"class": "chip warn"}, code), " ", message) for code, message in shown]
    return element(
        "details",
        {"open": ""} if opened else {},
        element("summary", {}, f"{s.name}: every number of the run with its reason"),
        element("ul", {"class": "warnings"}, *told) if told else Html(""),
        table(["plan", "value", "why"], rows, "plan"),
    )


def value(v: Any) -> str:
    """A number of a plan, in full."""
    if isinstance(v, dict):
        return str(v.get("shape", ""))
    if isinstance(v, list):
        return ", ".join(value(x) for x in v)
    if isinstance(v, bool) or not isinstance(v, int | float):
        return str(v)
    return f"{v:,}" if isinstance(v, int) else f"{v:.6g}"
