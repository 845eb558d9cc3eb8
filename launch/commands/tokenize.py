"""widebatch tokenize FILES --tokenizer FOLDER --out DIR: text files as token ids, for the recipe `tokens`."""

import os
from collections.abc import Sequence
from pathlib import Path

from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch tokenize", description=COMMANDS["tokenize"], allow_abbrev=False)
    files = "text files, or folders of them: a document in each line of a .jsonl, any other file is one document"
    parser.add_argument("files", metavar="FILES", type=Path, nargs="+", help=files)
    parser.add_argument("--tokenizer", metavar="FOLDER", required=True, help="a local folder with a tokenizer, or `bytes`")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=local_path("--out"),
        required=True,
        help="output folder; one that an interrupted call left is continued",
    )
    parser.add_argument(
        "--suffix", action="append", help="endings of the files to take from a folder (default: .txt and .jsonl); may be repeated"
    )
    parser.add_argument("--field", default="text", help="the field of a .jsonl line that has the text (default: text)")
    parser.add_argument("--procs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one for each core)")
    parser.add_argument("--no-eos", action="store_true", help="put no end-of-text token behind documents")
    args = parser.parse_args(argv)
    if args.procs < 1:
        raise UserError("--procs", f"is {args.procs}", "give at least 1")
    from harness.tools.tokenize import tokenize

    suffixes = args.suffix or [".txt", ".jsonl"]
    told = tokenize(
        args.files,
        args.out,
        tokenizer=args.tokenizer,
        suffixes=suffixes,
        field=args.field,
        eos=not args.no_eos,
        procs=args.procs,
    )
    echo(told)
    return 0
