"""widebatch fit RUNS...: your own scaling law from the journals of runs, for `widebatch plan --from`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.analysis.journal_reader import story_of
from harness.analysis.run_record import RunRecord
from harness.analysis.scaling_law import Law, fit_law, runs_of
from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.config.run_folder import JOURNAL
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import write_own
from launch.options.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch fit", description=COMMANDS["fit"], allow_abbrev=False)
    parser.add_argument("runs", metavar="RUNS", nargs="+", type=Path, help="run folders, or folders of them, such as a sweep's")
    parser.add_argument("--metric", default="eval/loss", help="metric to minimise (default eval/loss)")
    parser.add_argument("--out", type=Path, default=Path("fit.json"), help="file for the law (default fit.json)")
    args = parser.parse_args(argv)
    runs, unit, left = runs_of(_records(args.runs), args.metric)
    if not runs:
        raise UserError("RUNS", f"hold no run that can be used ({left[0] if left else 'no journal'})", "give run folders")
    law = fit_law(runs, unit, args.metric)
    echo("\n".join([*left, *law.lines]))
    if law.lr is not None:
        write_own(args.out, json.dumps(_tree(law), indent=1) + "\n")
        echo(f"{args.out}: widebatch plan RUN.yaml --from {args.out}")
    return 0


def _records(folders: Sequence[Path]) -> Iterator[RunRecord]:
    """The runs in the folders, each once, in order. Raises UserError."""
    journals = dict.fromkeys(j.resolve() for folder in folders for j in sorted(folder.rglob(JOURNAL)))
    for journal in journals:
        try:
            record = story_of(journal.parent.name, journal)
        except OSError as e:
            raise UserError("RUNS", f"{journal}: {e.strerror}", "leave it out") from e
        if record is not None:
            yield record


def _tree(law: Law) -> dict[str, object]:
    """The law and its intervals as plain data."""
    return {
        "law": asdict(law.lr) if law.lr else None,
        "exponents": {name: asdict(estimate) for name, estimate in law.exponents.items()},
        "loss": asdict(law.loss) if law.loss else None,
        "lines": list(law.lines),
    }
