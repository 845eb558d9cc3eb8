"""Every file and folder of the repository that a README names is there."""

import re
from pathlib import Path

import pytest

from harness.config import run_folder
from tests.support.processes import ROOT
from tests.support.readmes import BLOCKS, FILES

PAGES = [*FILES, ROOT / ".github" / "CONTRIBUTING.md", ROOT / ".github" / "SECURITY.md"]
NAME = r"[\w.-]+\.(?:py|md|jsonl?|yaml|toml|txt|css|js)\b"
PATH = re.compile(rf"(?<![\w./*~-])(?:{NAME}|(?:[\w.-]+/)+(?:{NAME})?)(?![\w/*:-])")
WRITTEN = {text.splitlines()[0].removeprefix("# ") for kind, text in BLOCKS if kind in ("python", "yaml")}
RUN = {value for value in vars(run_folder).values() if isinstance(value, str)}
THEIRS = {
    *WRITTEN, *RUN, "checkpoints/", "wandb/", "runs/", "config.json", "file.py", "fit.json", "index.json", "mine.py", "my_task.py",
    "logs/", "ranks/", "tokens.json", "train.py", "utils.py", "gpu.json", "configs/results/gpu_tests.json",
}  # fmt: skip
"""Files of users, of runs and of later: not in the repository."""


def named(page: Path) -> list[str]:
    """The paths in a page's backticks, and in its map, where a line has a folder and then files of it."""
    text = page.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = [path for quoted in re.findall(r"`([^`\s]+)`", prose) for path in PATH.findall(quoted)]
    for line in re.findall(r"^    (\w+/\S*  +\S.*)$", text, flags=re.MULTILINE):
        folder = ""
        for path in PATH.findall(line):
            folder = path if path.endswith("/") and (ROOT / path).is_dir() else folder
            found.append(path if path.startswith(folder) else folder + path)
    return [path for path in found if path not in THEIRS and not path.startswith(("runs/", "RUN/"))]


def exists(path: str, page: Path) -> bool:
    """Whether a path is there, from the root, the page or the records; or, for a name alone, anywhere in the page's folder."""
    if any((base / path).exists() for base in (ROOT, page.parent, ROOT / "configs" / "results")):
        return True
    return path.count("/") <= path.endswith("/") and page.parent != ROOT and any(page.parent.rglob(path.rstrip("/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    assert [path for path in named(page) if not exists(path, page)] == []


def test_a_file_of_the_map_that_is_gone_is_found(tmp_path: Path) -> None:
    assert {"harness/engine/ddp.py", "harness/data/sample_order.py", "tests/golden/"} <= set(named(ROOT / "README.md"))
    page = tmp_path / "README.md"
    page.write_text("    harness/engine/   one step: base.py; ddp.py\n\nSee `harness/plan/gone.py`, `plan.json`, `x/y.py:Name`.\n")
    assert [path for path in named(page) if not exists(path, page)] == ["harness/plan/gone.py", "harness/engine/base.py"]
