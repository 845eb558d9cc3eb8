"""The READMEs: the root's and those beside the code. What a record feeds stands between two marks, in whichever of them."""

import re
from pathlib import Path

from tests.support.processes import ROOT

FILES = [
    ROOT / "README.md",
    *sorted(f for top in ("configs", "docker", "harness", "launch", "tests") for f in (ROOT / top).rglob("README.md")),
]
TEXT = "\n".join(f.read_text() for f in FILES)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = list(dict.fromkeys(line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()))


def write_examples(folder: Path) -> Path:
    """A folder with the run files and with the files that the READMEs tell one to write."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    for kind, text in BLOCKS:
        if kind in ("python", "yaml"):
            (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
    return folder


def rewrite(marks: tuple[str, str], text: str) -> None:
    """Put `text` between two marks, in the README that has them."""
    (page,) = (f for f in FILES if marks[0] in f.read_text())
    before, _, rest = page.read_text().partition(marks[0])
    page.write_text(before + marks[0] + "\n" + text + marks[1] + rest.partition(marks[1])[2])
