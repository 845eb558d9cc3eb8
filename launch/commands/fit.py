"""widebatch fit RUNS...: your own scaling law from the journals of runs, for `widebatch plan --from`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.analysis.journal_reader import story_of
from harness.analysis.run_exports import COLUMNS, columns_of, exported
from harness.analysis.scaling_law import EndedRun, Law, fit_law, of_record, runs_of
from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.config.run_folder import JOURNAL
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path, write_out


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch fit", description=COMMANDS["fit"], allow_abbrev=False)
    parser.add_argument(
        "runs",
        metavar="RUNS",
        nargs="+",
        type=Path,
        help="run folders, or folders of them, such as a sweep's; or W&B exports of runs, .csv or .json",
    )
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN",
        nargs="+",
        default=[],
        help=f"exports: which column holds what, where it is not as this program logs it ({', '.join(COLUMNS)})",
    )
    parser.add_argument("--metric", default="eval/loss", help="metric to minimise (default eval/loss)")
    parser.add_argument("--out", type=local_path("--out"), default=Path("fit.json"), help="file for the law (default fit.json)")
    args = parser.parse_args(argv)
    runs, unit, left = runs_of(_ended(args.runs, columns_of(args.columns), args.metric))
    if not runs:
        raise UserError(
            "RUNS", f"hold no run that can be used ({left[0] if left else 'no journal'})", "give run folders or W&B exports"
        )
    law = fit_law(runs, unit, args.metric)
    echo("\n".join([*left, *law.lines]))
    if law.lr is not None:
        write_out(args.out, json.dumps(_tree(law), indent=1) + "\n")
        echo(f"{args.out}: widebatch plan RUN.yaml --from {args.out}")
    return 0


def _ended(places: Sequence[Path], columns: Mapping[str, str], metric: str) -> Iterator[EndedRun]:
    """The runs of the exports, then those of the folders, each once. Raises UserError."""
    for file in (place for place in places if place.suffix in (".csv", ".json")):
        yield from exported(file, columns, metric)
    journals = dict.fromkeys(j.resolve() for folder in places for j in sorted(folder.rglob(JOURNAL)))
    for journal in journals:
        try:
            record = story_of(journal.parent.name, journal)
        except OSError as e:
            raise UserError("RUNS", f"{journal}: {e.strerror}", "leave it out") from e
        if record is not None:
            yield of_record(record, metric)


def _tree(law: Law) -> dict[str, object]:
    """The law and its intervals as plain data."""
    return {
        "law": asdict(law.lr) if law.lr else None,
        "exponents": {name: asdict(estimate) for name, estimate in law.exponents.items()},
        "loss": asdict(law.loss) if law.loss else None,
        "lines": list(law.lines),
    }
