"""The report: true to the journal, the same in the browser and the terminal, safe against what a run says, small for long runs."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.compare_runs import comparison
from harness.analysis.downsample import Downsampler
from harness.analysis.every_nth import MOST
from harness.analysis.journal_reader import read_story
from harness.analysis.run_record import RunRecord
from harness.analysis.sweep_results import Results, Row, to_json
from harness.analysis.target_metric import Target
from harness.config.errors import UserError
from launch.report.axes import axis, clock, labels, short
from launch.report.markup import VOID
from launch.report.page import page
from launch.report.report import main
from launch.report.text import text
from tests.support import pictures
from tests.support.journals import Line, digits, start, steps, write
from tests.support.processes import LIMIT_S

values = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf)), max_size=300)


@given(values, st.integers(2, 16))
def test_a_thinned_curve_loses_no_extreme_and_no_point(told: list[float], most: int) -> None:
    thin = Downsampler(most)
    for x, y in enumerate(told):
        thin.add(x, y)
    curve = thin.curve()
    finite = [y for y in told if math.isfinite(y)]
    assert len(curve) <= most
    assert sum(b.count for b in curve) == len(finite)
    assert sum(b.bad for b in curve) == len(told) - len(finite)
    assert [b.first for b in curve] == sorted(b.first for b in curve)
    for b in curve:
        held = [y for y in told[int(b.first) : int(b.last) + 1] if math.isfinite(y)]
        if held:
            assert (b.low, b.high) == (min(held), max(held))
            assert b.mean == pytest.approx(sum(held) / len(held), rel=1e-9, abs=1e-6)


def test_a_point_that_comes_again_takes_the_place_of_all_after_it() -> None:
    thin = Downsampler()
    for x, y in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 9.0)):
        thin.add(x, y)
    assert [(b.last, b.mean) for b in thin.curve()] == [(1, 1.0), (2, 9.0)]


sizes = st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-12)


@given(st.lists(sizes, min_size=1, max_size=20), st.booleans())
def test_an_axis_shows_every_value_and_names_round_ones(told: list[float], zero: bool) -> None:
    up = axis(told, zero=zero)
    assert all(0 <= up.place(v) <= 1 for v in told)
    ticks = up.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(-0.01 <= up.place(t) <= 1.01 for t in ticks)


def test_numbers_are_short_and_true() -> None:
    said = [short(v) for v in (None, 0.0, 0.0499, 1.2e-5, 1437, 3608.4, 43110, 2.5e9, math.nan, 99.96, -0.5)]
    assert said == ["–", "0", "0.0499", "1.2e-05", "1,437", "3,608", "43.1k", "2.5G", "nan", "100", "-0.5"]
    assert [clock(s) for s in (0.123, 12.3, 245, 7380)] == ["0.12 s", "12 s", "4 min 05 s", "2 h 03 min"]


def lines(told: Iterable[Line]) -> Iterator[bytes]:
    """As they stand in a file."""
    return (json.dumps(line).encode() for line in told)


def story(name: str, told: Iterable[Line]) -> RunRecord:
    """What these lines tell."""
    found = read_story(name, lines(told))
    assert found is not None
    return found


def test_a_restart_s_samples_count_as_told_last_and_its_lost_time_is_named() -> None:
    back = [dict(line) | ({"reliability/lost_s": 2.0} if line["event"] == "window" else {}) for line in steps(31, 60, 1.0)]
    told = [start(), *steps(1, 50, 3.0), start(samples=300, step=30), *back]
    found = read_story("run", [*lines(told), b'{"event": "step", "samp'])
    assert found is not None
    losses = [(b.last, b.mean) for b in found.curves["train/loss"]]
    assert losses == [(10 * n, 3.0 if n <= 30 else 1.0) for n in range(1, 61)]
    assert [s for s, _ in found.losses] == [100, 200, 300, 400, 500, 600]
    assert found.reason is None
    assert found.starts == 2
    assert sum(found.seconds.values()) == pytest.approx(5 + 3)
    assert found.seconds["lost"] == 2
    assert found.seconds["data"] == pytest.approx(0.8)
    assert found.seconds["comm"] == pytest.approx(1.6)


def test_the_noise_scale_is_of_the_high_rates_and_unknown_where_most_windows_have_none() -> None:
    told = list(steps(1, 100, 1.0))
    for line in told:
        if line["event"] == "window" and line["step"] > 60:
            line |= {"train/lr": 0.01, "batch/noise_scale_samples": 5000.0}
    assert story("run", [start(), *told]).noise_scale == 50
    hidden = [line | {"batch/noise_scale_samples": None if line["step"] > 20 else 50.0} for line in told]
    assert story("run", [start(), *hidden]).noise_scale is None


def test_a_long_journal_is_read_in_little_memory() -> None:
    told = (line | ({"train/loss": 99.0} if line["step"] == 8_234 else {}) for line in steps(1, 12_000, 2.0))
    tracemalloc.start()
    found = story("long", chain([start(total_samples=120_000)], told))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
    assert max(b.high for b in found.curves["train/loss"]) == 99
    assert len(page([found], None)) < 400_000


def test_the_memory_of_a_report_does_not_grow_with_the_run() -> None:
    """Windows and evaluations are thinned like steps; `python -m tests.bench.journal` records the memory for 10^7 steps."""
    last = 2 * MOST + 1
    told = (line for line in steps(1, last, 2.0, every=1) if line["event"] == "window")
    lines = (one for line in told for one in (line, line | {"event": "eval", "eval/loss": 1.0}))
    found = story("long", chain([start(total_samples=10 * last)], lines))
    assert MOST // 2 < len(found.losses) <= MOST + 1
    assert len(found.evals["eval/loss"]) == len(found.losses) == found.high_windows
    assert found.losses[-1][0] == found.evals["eval/loss"][-1][0] == 10 * last
    assert found.noise_scale == 50


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs of one recipe: the reference, k = 4, and k = 4 at a rate that no net survives."""
    here = tmp_path_factory.mktemp("runs")
    return [digits(here / "reference", 32), digits(here / "larger", 128), digits(here / "hot", 128, lr=4.0)]


def test_runs_are_compared_at_equal_samples(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = told["comparison"]["rows"]
    assert told["comparison"]["samples"] == 3840
    assert [r["ratio"] for r in rows] == [1, 4, 4]
    assert [r["steps"] for r in rows[:2]] == [120, 30]
    assert rows[0]["verdict"] is None
    assert rows[2]["verdict"]["loss"] == "nan" or rows[2]["verdict"]["loss"] > rows[2]["verdict"]["reference"]
    journal = [json.loads(line) for line in (runs[1] / "events.jsonl").read_text().splitlines()]
    last = [line for line in journal if line["event"] == "eval"][-1]
    assert rows[1]["evals"]["eval/loss"] == last["eval/loss"]
    seconds = told["runs"][1]["seconds"]
    window = [line for line in journal if line["event"] == "window"][-1]
    assert sum(seconds.values()) == pytest.approx(last["progress/wall_s"], rel=0.2)
    assert seconds["eval"] == pytest.approx(last["pause/eval_s"])
    assert seconds["compute"] + seconds["data"] + seconds["comm"] == pytest.approx(window["progress/train_s"], rel=0.05)


class Reader(HTMLParser):
    """Elements, their attributes and texts; fails where an element is not closed in order."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_by_itself_and_lets_only_its_own_script_run(runs: list[Path], tmp_path: Path) -> None:
    assert main([*map(str, runs), "--out", str(tmp_path / "deep" / "report.html")]) == 0
    document = (tmp_path / "deep" / "report.html").read_text()
    read = Reader(document)
    names = [name for name, _ in read.found]
    assert names.count("script") == names.count("style") == 1
    assert names.count("figure") >= 8
    assert not {"link", "img", "iframe", "a", "object", "use"} & set(names)
    assert not re.search(r"https?://|url\(|@import", document)
    script = document.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for name, a in read.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    said = " ".join(read.texts)
    for wanted in ("Compared at 3,840 samples", "lr x k = x4", "Goyal et al. 2017", "Where the time went", "short_warmup"):
        assert wanted in said


def test_what_a_run_says_is_text() -> None:
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[2J"
    told = [
        start(rule=bad, sources={"rule": bad, bad: bad}, warnings=[{"code": bad, "message": bad}], **{bad: 1}),
        *steps(1, 30, 1.0),
        {"event": "eval", "step": 30, "samples": 300, "best": True, f"eval/{bad}": 1.0, "eval/loss": 1.0},
        {"event": "notice", "step": 30, "samples": 300, "code": bad, "message": bad},
        {"event": "end", "step": 30, "samples": 300, "reason": "failed", "message": bad},
    ]
    stories = [story(name, told) for name in (bad, "other")]
    document = page(stories, comparison(stories))
    clean = page([story("clean", [start(), *steps(1, 30, 1.0)])], None)
    read = Reader(document)
    assert [name for name, _ in read.found].count("script") == 1
    assert {name for name, _ in read.found} - {name for name, _ in Reader(clean).found} <= {"li", "button", "ul", "strong"}
    assert not [a for _, attributes in read.found for a in attributes if a.startswith("on")]
    assert "\x1b" not in text(stories, None)


def test_one_run_that_diverged_leaves_the_picture_with_a_mark_and_the_others_fill_it() -> None:
    calm = [story(f"calm{n}", [start(), *steps(1, 60, 1.0 + n / 10)]) for n in range(5)]
    wild = [line | ({"train/loss": 1e30} if line["step"] > 20 else {}) for line in steps(1, 60, 1.0)]
    document = page([*calm, story("wild", [start(), *wild])], None)
    figure = document.partition("<h3>Training loss</h3>")[2].partition("</figure>")[0]
    ticks = re.findall(r'class="tick y"[^>]*>([^<]*)<', figure)
    assert max(float(t) for t in ticks) < 10, ticks
    (mark,) = re.findall(r'class="beyond c5"[^>]*title="([^"]*)"', figure)
    assert mark == "wild leaves the chart here: up to 1e30"
    alone = page([story("wild", [start(), *wild])], None).partition("<h3>Training loss</h3>")[2].partition("</figure>")[0]
    assert "beyond" not in alone, "a run alone is shown whole"


def test_what_the_guard_did_is_seen() -> None:
    told = [
        start(),
        *steps(1, 60, 1.0),
        {"event": "notice", "step": 30, "samples": 300, "code": "roll_back", "message": "back from step 60 to 30"},
        *[line | {"stability/lr_factor": 0.25} for line in steps(31, 90, 1.0)],
        {"event": "end", "step": 90, "samples": 900, "reason": "complete", "message": ""},
    ]
    found = story("saved", told)
    assert (found.discarded, found.saved, found.lr_factor) == ([(300, 600)], True, 0.25)
    document = page([found], None)
    assert "complete, saved by the guard" in document
    assert document.count('class="discarded"') == 1
    assert "× 0.25 at the end" in document
    assert "complete, saved by the guard after 90 steps" in text([found], None)
    pins = [a for name, a in Reader(document).found if name == "button" and "pin" in (a.get("class") or "")]
    assert {a["aria-label"] for a in pins} == {"roll_back: back from step 60 to 30"}, "each says what it is about"
    assert [a["tabindex"] for a in pins] == ["0"], "one stop of the Tab key for a chart"


def test_one_that_died_early_does_not_cut_the_comparison_of_the_others_short() -> None:
    """All were compared at the samples of the first that died, beside verdicts of later ones."""
    lived = [story(f"lived{n}", [start(), *steps(1, 100, 1.0 + n)]) for n in range(2)]
    dead = {"event": "end", "step": 20, "samples": 200, "reason": "guard", "message": "too hot"}
    found = comparison([*lived, story("died", [start(), *steps(1, 20, 9.0), dead])])
    assert found is not None
    assert [(r.samples, r.died) for r in found.rows] == [(1000, ""), (1000, ""), (200, "guard")]
    assert [r.verdict and r.verdict.samples for r in found.rows] == [None, 1000, 200]
    assert [r.against for r in found.rows[1:]] == ["diverges (+100.0 %)", "died at 200 samples"]


def test_a_spike_s_mark_and_row_say_how_to_list_its_batch(tmp_path: Path) -> None:
    spikes = [{"event": "notice", "step": n, "samples": 10 * n, "code": "spike", "message": "loss spike"} for n in (15, 25)]
    folder = write(tmp_path / "my run", [start(), *steps(1, 30, 1.0), *spikes])
    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 0
    read = Reader((tmp_path / "page.html").read_text())
    command = f"widebatch samples '{folder}' --step "
    pins = [a["aria-label"] or "" for name, a in read.found if name == "button" and "pin" in (a.get("class") or "")]
    assert {pin.partition("its batch: ")[2] for pin in pins} == {command + "15", command + "25"}
    assert command + "25" in read.texts


def test_windows_tell_at_which_step_and_second_a_run_was_over_restarts_and_rollbacks() -> None:
    timed = [line | {"progress/wall_s": line["step"] / 10} for line in steps(1, 50, 1.0) if line["event"] == "window"]
    again = [line | {"progress/wall_s": 2.0 + line["step"] / 10} for line in steps(31, 60, 1.0) if line["event"] == "window"]
    knots = story("run", [start(), *timed, start(samples=300, step=30), *again]).knots
    assert knots[:3] == [(100, 10, 1.0), (200, 20, 2.0), (300, 30, 3.0)]
    assert knots[3:] == [(400, 40, 11.0), (500, 50, 12.0), (600, 60, 13.0)], "the first process ran for 5 s, two of them in vain"


def test_memory_and_utilisation_are_shown_where_the_journal_has_them() -> None:
    used = {"memory/host_rss_gib": 3.0, "memory/gpu_peak_reserved_gib": 70.0, "throughput/mfu_pct": 41.0}
    plain, full = (story("run", [start(), *[line | more for line in steps(1, 30, 1.0)]]) for more in ({}, used))
    titles = [re.findall("<h3>(Memory|Model FLOPs utilisation)</h3>", page([s], None)) for s in (plain, full)]
    assert titles == [[], ["Model FLOPs utilisation", "Memory"]]


def test_a_run_says_when_where_and_with_what_it_ran() -> None:
    about = {"python": "3.11.2", "torch": "2.13.0", "widebatch": "1.2", "device": "NVIDIA H200", "hosts": ["a", "b"]}
    line = start() | {"began": 1_790_000_000.0, "device": "cuda:0", "environment": about}
    said = " ".join(Reader(page([story("run", [line, *steps(1, 30, 1.0)])], None)).texts)
    for wanted in ("2026-09-21 14:13 UTC", "NVIDIA H200", "a, b", "widebatch 1.2, torch 2.13.0, python 3.11.2"):
        assert wanted in said
    odd = start() | {"began": 1e300, "environment": {"hosts": "x", "torch": []}}
    assert story("run", [odd, *steps(1, 30, 1.0)]).where == []


def test_numbers_beside_an_axis_are_told_apart_and_a_huge_one_is_short() -> None:
    assert labels([98.5, 98.75, 99.0]) == ["98.50", "98.75", "99.00"]
    assert labels([0.98125, 0.9815]) == ["0.98125", "0.98150"]
    assert labels([0.0, 12_340_000.0, 12_350_000.0]) == ["0", "12.34M", "12.35M"]
    assert labels([0.0, 500.0, 1000.0]) == ["0", "500", "1,000"]
    assert (short(1e15), short(-2.5e30), short(9.99e14)) == ("1e15", "-2.5e30", "999T")


def test_a_journal_of_anything_is_read_or_refused_in_words(tmp_path: Path) -> None:
    strange = [[], 1, {"event": "start"}, {"event": "start", "samples": "x", "step": 1}, {"event": "step", "samples": 1, "step": 1}]
    with pytest.raises(UserError, match="no run has started"):
        main([str(write(tmp_path / "strange", strange))])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"events\.jsonl: No such file or directory; give the folder that a run wrote"):
        main([str(tmp_path / "nothing")])
    bent = [start() | {"plan": 3}, {"event": "window", "samples": 10, "step": 1, "train/loss": {}, "pause/eval_s": "soon"}]
    assert main([str(write(tmp_path / "bent", bent)), "--out", str(tmp_path / "bent.html")]) == 0


def test_the_terminal_reads_what_the_page_shows(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, runs), "--text"]) == 0
    said = capsys.readouterr().out
    stories = [story(r.name, map(json.loads, (r / "events.jsonl").read_text().splitlines())) for r in runs]
    found = comparison(stories)
    assert found is not None
    document = " ".join(Reader(page(stories, found)).texts)
    for row in found.rows:
        assert short(row.loss) in said
        assert short(row.loss) in document
    assert re.search(r"larger +\S+ +[▁▂▃▄▅▆▇█]{50,}", said)
    assert "compared at 3,840 samples" in said


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_real_browser_runs_the_page_s_script_and_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    main([*map(str, runs), "--out", str(tmp_path / "report.html")])
    browsed = browse(tmp_path / "report.html")
    assert browsed.count('class="tip off"') == browsed.count("<figure") >= 8
    assert '<form class="tools" data-knots' in browsed, "the controls are there where the script runs"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_all_charts_change_their_axis_and_zoom_together_and_a_run_is_hidden_in_all(tmp_path: Path) -> None:
    """Two runs of 600 samples: one of 60 steps in 6 s, one of 30 steps in 30 s."""
    fast = [line | {"progress/wall_s": line["step"] / 10} for line in steps(1, 60, 1.0)]
    slow = [line | {"progress/wall_s": float(line["step"])} for line in steps(1, 30, 2.0, batch=20)]
    (tmp_path / "page.html").write_text(page([story("fast", [start(), *fast]), story("slow", [start(batch=20), *slow])], None))

    def after(script: str) -> tuple[list[list[int]], list[str], set[str]]:
        """(where each line of the loss begins and ends, the loss's x ticks, every chart's share of the axis)."""
        figures = browse(tmp_path / "page.html", script).split("<figure")[1:]
        paths = [re.findall(r"[ML]([-\d.]+) ", d) for d in re.findall(r'<path class="line c\d" [^>]*?d="([^"]*)"', figures[0])]
        views = {" ".join(re.findall(r'viewBox="([-\d.]+) [-\d.]+ ([-\d.]+)', f)[0]) for f in figures}
        ends = [[round(float(d[0])), round(float(d[-1]))] for d in paths]
        return ends, re.findall(r'class="tick x"[^>]*>([^<]*)<', figures[0]), views

    over = "document.querySelectorAll('.tools input')[{}].click();"
    samples, wall, zoomed = (after(script) for script in ("", over.format(2), over.format(1) + ZOOM))
    assert samples[0] == [[10, 600], [20, 600]]
    assert (wall[0][0][1], wall[0][1][1]) == (200, 1000), "6 s of 30 s, and all of them"
    assert wall[1] == ["0", "5 s", "10 s", "15 s", "20 s", "25 s", "30 s"]
    assert [end for _, end in zoomed[0]] == [1000, 500], "60 steps, and 30 of them"
    assert zoomed[1] == ["15", "20", "25", "30", "35", "40", "45"]
    assert (wall[2], zoomed[2]) == ({"0 1000"}, {"250 500"})
    figures = browse(tmp_path / "page.html", "document.querySelectorAll('.controls .legend button')[1].click();").split("<figure")[
        1:
    ]
    assert all("line c1 off" in f and "line c0 off" not in f for f in figures if "line c1" in f)


ZOOM = "document.querySelector('[data-zoom=\"zoom in\"]').click();"


def browse(document: Path, script: str = "") -> str:
    """The document after a real browser has run its script, and then `script`; fails where the browser has anything to say."""
    shown = document
    if script:
        text = re.sub(r"<meta http-equiv[^>]*>", "", document.read_text()).replace("</body>", f"<script>{script}</script></body>")
        shown = document.with_suffix(".acted.html")
        shown.write_text(text)
    argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    argv += ["--disable-component-update", "--disable-sync", f"--user-data-dir={document.parent / 'profile'}"]
    argv += ["--enable-logging=stderr", "--dump-dom", shown.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert not re.search(r"CONSOLE|Refused|Uncaught", done.stderr)
    return done.stdout


def swept(folder: Path) -> Path:
    """A sweep of two rules over four batches: `linear` holds to 128, `none` to 64."""
    worse = {"linear": {32: 0.1, 64: 0.1, 128: 0.1, 256: 2.0}, "none": {32: 0.1, 64: 0.1, 128: 0.3, 256: 0.6}}
    target = Target("eval/loss", higher=False, value=0.2)
    rows = [
        Row(rule, batch, seed, "complete", 6400 // batch, 6400, loss + seed / 1000, 3200 // batch if loss < 0.2 else None,
            3200 if loss < 0.2 else None, 90.0, 1.0)
        for rule, told in worse.items()
        for batch, loss in told.items()
        for seed in range(2)
    ]  # fmt: skip
    folder.mkdir()
    tree = to_json(Results(tuple(rows), 32, target), {"command": "widebatch sweep </pre><b>"})
    (folder / "sweep.json").write_text(json.dumps(tree))
    return folder


def test_a_sweep_is_shown_with_its_verdict(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = swept(tmp_path / "ratios")
    assert main([str(runs[0]), str(folder), "--out", str(tmp_path / "both.html")]) == 0
    assert main([str(folder), "--out", str(tmp_path / "alone.html")]) == 0
    for name in ("both", "alone"):
        read = Reader((tmp_path / f"{name}.html").read_text())
        said = " ".join(read.texts)
        assert "linear: holds up to batch 128" in said
        assert "perfect scaling up to batch 128" in said
        assert said.count("steps to loss <= 0.2") >= 1
    capsys.readouterr()
    assert main([str(folder), "--text"]) == 0
    assert "none: holds up to batch 64" in capsys.readouterr().out
    (folder / "sweep.json").write_text('{"trials": 3}')
    with pytest.raises(UserError, match=r"sweep.json is not a record of a sweep"):
        main([str(folder)])


def test_without_a_browser_the_script_of_pictures_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert pictures.main() == 2
    assert capsys.readouterr().out == "chromium is not installed: no pictures\n"
