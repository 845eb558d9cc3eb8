"""The report as one HTML page that needs no network: runs -> text. Pure.

Whatever a run says is escaped (launch/report/markup.py), and the page's policy lets no script run but its own, known by its digest.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from harness.analysis.compare_runs import Comparison
from harness.analysis.run_record import RunRecord, best_by
from launch.report.axes import clock, short
from launch.report.chart import COLOURS
from launch.report.charts import charts
from launch.report.markup import Html, element, raw
from launch.report.sections import compared, events, lowered, measure, plans, time_bars

HEADLINES = ("eval/accuracy_pct", "eval/bits_per_byte", "eval/loss")
"""The measures by which a run is judged; the first that it has is used."""

SCRIPT = ("axes.js", "plot.js", "page.js")
"""The files of the page's one script, in order."""


def page(stories: Sequence[RunRecord], comparison: Comparison | None, more: Sequence[Html] = (), *, title: str = "") -> str:
    """The whole document. `more`: further sections, such as a sweep's."""
    style, script = _file("page.css"), "".join(_file(name) for name in SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = title or ", ".join(s.name for s in stories)
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, f"{title} – widebatch"),
        element("style", {}, raw(style)),
    )
    body = element(
        "body",
        {},
        element("header", {}, element("h1", {}, "widebatch report"), element("p", {"class": "sub"}, title)),
        element("main", {}, *_sections(stories, comparison), *more),
        element("script", {}, raw(script)),
    )
    return "<!doctype html>\n" + element("html", {"lang": "en"}, head, body) + "\n"


def _file(name: str) -> str:
    return files("launch.report").joinpath(name).read_text(encoding="utf-8")


def _sections(stories: Sequence[RunRecord], comparison: Comparison | None) -> list[Html]:
    if not stories:
        return []
    return [
        element("section", {"class": "cards"}, *[_card(s, n % COLOURS) for n, s in enumerate(stories)]),
        compared(comparison) if comparison else Html(""),
        charts(stories),
        time_bars(stories),
        events(stories),
        plans(stories),
    ]


def _card(s: RunRecord, colour: int) -> Html:
    """A run at a glance."""
    plan = s.plan
    headline = next((name for name in HEADLINES if name in s.best), None)
    facts = [
        ("batch", f"{short(s.planned('global_batch'))} (k = {short(s.planned('ratio'))})"),
        ("learning rate", f"{lowered(s)} ({plan.get('rule', '')})"),
        ("samples", f"{short(s.samples)} in {s.step:,} steps"),
        ("ranks", f"{short(s.planned('world_size'))}, {plan.get('backend', '')} {plan.get('precision', '')}"),
        ("speed", f"{short(s.last.get('throughput/samples_per_s'))} samples/s"),
        ("time", clock(sum(s.seconds.values()))),
        ("noise scale", _noise(s)),
        ("weights", short(s.parameters)),
        *s.where,
    ]
    name = element("h2", {}, element("i", {"class": f"swatch c{colour}"}), s.name, " ", _status(s))
    best = Html("")
    if headline:
        by, what = best_by(s.config), headline.partition("/")[2].removesuffix("_pct").replace("_", " ")
        label = f"best {what}" if headline == by else f"{what} where {measure(by)} was best"
        value = short(s.best[headline]) + (" %" if headline.endswith("_pct") else "")
        best = element("p", {"class": "headline"}, element("strong", {}, value), " ", label)
    rows = [element("div", {}, element("dt", {}, k), element("dd", {}, v)) for k, v in facts]
    note = element("p", {"class": "note"}, s.message) if s.message else Html("")
    return element("article", {"class": "card"}, name, best, element("dl", {}, *rows), note)


def _noise(s: RunRecord) -> str:
    return "not known" if s.noise_scale is None else f"{short(s.noise_scale)} samples"


def _status(s: RunRecord) -> Html:
    kind = {None: "open", "complete": "good", "early_stop": "good", "guard": "bad", "failed": "bad", "unsaved": "bad"}.get(
        s.reason, "warn"
    )
    text = "not ended" if s.reason is None else s.reason.replace("_", " ")
    if s.saved:
        kind, text = "warn", f"{text}, saved by the guard"
    elif s.died and kind != "bad":
        kind, text = "bad", s.died
    return element("span", {"class": f"chip {kind}"}, text)
