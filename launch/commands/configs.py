"""widebatch configs: the run files that come with the package, listed, or copied to be changed."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import launch
from harness.config.errors import UserError, did_you_mean
from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import make_own, write_own
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path

_PACKAGE = Path(launch.__file__).parent
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""The run files' folder: beside the modules in an installed package, at the top in a checkout."""
WHAT = "# What:"
"""The prefix of the header line of a run file that says what it trains."""
SCHEMA = "run.schema.json"
"""The schema that the first line of each run file names: editors look for it beside the file."""


def main(argv: Sequence[str]) -> int:
    """List, or copy. Raises UserError."""
    args = _parser().parse_args(argv)
    known = shipped()
    for name in args.names:
        if name not in known:
            raise UserError("NAME", f"{name!r} is not a run file of the package", did_you_mean(name, list(known)))
    if args.to is None:
        if args.names:
            raise UserError("--to", "is not given", "add the folder to copy to, such as --to configs")
        width = max(map(len, known))
        echo("\n".join(f"{name:<{width}}  {summary(text)}" for name, text in known.items()))
        return 0
    copy({f"{name}.yaml": known[name] for name in args.names or known} | {SCHEMA: (FOLDER / SCHEMA).read_text()}, args.to)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="widebatch configs", description=COMMANDS["configs"], allow_abbrev=False)
    parser.add_argument("names", metavar="NAME", nargs="*", help="which run files to copy, by the names in the list (default: all)")
    what = "copy them into this folder, with the schema by which editors complete them; no file is overwritten"
    parser.add_argument("--to", type=local_path("--to"), metavar="FOLDER", help=what)
    return parser


def shipped() -> dict[str, str]:
    """The text of each run file of the package, by its name without `.yaml`."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yaml"))}


def summary(text: str) -> str:
    """What a run file trains: the line of its header that says so."""
    return next(line for line in text.splitlines() if line.startswith(WHAT)).removeprefix(WHAT).strip()


def copy(texts: Mapping[str, str], folder: Path) -> None:
    """Write files by name; none of them where one exists with different content. Raises UserError."""
    make_own(folder, "--to")
    try:
        there = {name: (folder / name).read_text(errors="replace") for name in texts if (folder / name).exists()}
        for name, text in there.items():
            if text != texts[name]:
                raise UserError("--to", f"{folder / name} exists with different content", "remove it, or give another folder")
        for name, text in texts.items():
            if name not in there:
                write_own(folder / name, text)
            echo(str(folder / name))
    except OSError as e:
        raise UserError("--to", f"{folder} cannot be written ({e.strerror})", "make room there, or give another folder") from e
