"""widebatch report RUN...: what runs did, as one HTML page without network, as text, or as JSON for other programs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.analysis.compare_runs import Comparison, comparison
from harness.analysis.journal_reader import story_of
from harness.analysis.noise_evidence import evidence_of
from harness.analysis.run_record import RunRecord
from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.config.run_folder import JOURNAL, RunFolder
from harness.plan.evidence import to_json
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import make_own
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path, write_out
from launch.report.page import page
from launch.report.sweep_section import FILE, read, section
from launch.report.sweep_section import text as sweep_text
from launch.report.text import text


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    args = _parser().parse_args(argv)
    named = list(zip(args.run, names(args.run), strict=True))
    sweeps = [(name, read(run)) for run, name in named if (run / FILE).is_file()]
    stories = [_story(run, name) for run, name in named if not (run / FILE).is_file()]
    if args.json:
        echo(json.dumps(as_json(stories, comparison(stories)), indent=1, allow_nan=False))
        return 0
    if args.text:
        told = [text(stories, comparison(stories))] if stories else []
        echo("\n".join([*told, *(sweep_text(name, found) for name, found in sweeps)]).removesuffix("\n"))
        return 0
    make_own(args.out.parent, "--out")
    sections = [section(name, found) for name, found in sweeps]
    document = page(stories, comparison(stories), sections, title=", ".join(name for _, name in named))
    write_out(args.out, document)
    echo(f"{args.out}: {', '.join(name for _, name in named)}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="widebatch report", description=COMMANDS["report"], allow_abbrev=False)
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="+", help="folders of runs, the first being the reference, or of sweeps"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=local_path("--out"), default=Path("report.html"), help="the page (default: report.html)"
    )
    parser.add_argument("--text", action="store_true", help="print it for a terminal, write no page")
    parser.add_argument("--json", action="store_true", help="print its numbers as one JSON object, write no page")
    return parser


def as_json(stories: Sequence[RunRecord], compared: Comparison | None) -> dict[str, Any]:
    """The numbers of the report, without curves. One that is not finite is text, as in a journal."""
    runs = [
        {
            "name": s.name,
            "reason": s.reason,
            "message": s.message,
            "step": s.step,
            "samples": s.samples,
            "plan": s.plan,
            "best": s.best,
            "last": s.last,
            "seconds": s.seconds,
            "noise_scale_samples": s.noise_scale,
            "events": [asdict(k) for k in s.kinds],
        }
        for s in stories
    ]
    found = evidence_of(stories)
    tree = {"runs": runs, "comparison": compared and asdict(compared), "evidence": found and to_json(found)}
    told: dict[str, Any] = _plain(tree)
    return told


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(k): _plain(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(v) for v in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


def names(runs: Sequence[Path]) -> list[str]:
    """What each run is called: by its folder, or as it was given where two folders are called alike."""
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


def _story(run: Path, name: str) -> RunRecord:
    journal = RunFolder(run).journal
    try:
        story = story_of(name, journal)
    except OSError as e:
        raise UserError("report", f"{journal}: {e.strerror}", _instead(run)) from e
    if story is None:
        raise UserError("report", f"in {journal} no run has started", _instead(run))
    return story


def _instead(folder: Path) -> str:
    """What to give instead of a folder that holds no run: the newest run in it, if there is one."""
    newest = max(folder.glob(f"*/{JOURNAL}"), key=lambda file: file.stat().st_mtime, default=None)
    return "give the folder that a run wrote" + (f", such as {newest.parent}" if newest else "")
