"""What lies where in a run folder is spelt in one module; the checkpoints are where `checkpoint.dir` says."""

import ast
import re
from pathlib import Path

import pytest

from harness.config import run_folder
from harness.config.loader import decode
from harness.config.run_folder import RunFolder
from tests.support.processes import ROOT

HOME = Path(run_folder.__file__)
FILES = sorted(f for top in ("harness", "launch") for f in (ROOT / top).rglob("*.py") if f != HOME)
NAMES = [getattr(run_folder, name) for name in ("RUN_FILE", "PLAN", "JOURNAL", "ACCELERATE", "DEEPSPEED", "EVIDENCE")]
FOLDERS = ["logs", "checkpoints", "origin", "owner", "lock", "wandb", "wandb_id"]
"""Names that are words too: they count where they are part of a path."""
TREE = {
    "recipe": {"use": "digits"},
    "batch": {"reference": 32, "total": 32},
    "optim": {"lr": 0.01},
    "schedule": {"samples": 64},
}


def spelt(source: str) -> list[str]:
    """The names of a run folder's files that the strings of a source contain, its docstrings aside."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs]
    joined = [n.right for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div)]
    found = [name for text in texts for name in NAMES if re.search(rf"(?<![\w.]){re.escape(name)}", text)]
    found += [str(n.value) for n in joined if isinstance(n, ast.Constant) and n.value in FOLDERS]
    return found + [name for text in texts for name in FOLDERS if re.search(rf"^/{name}(/|$)", text)]


@pytest.mark.parametrize(
    "source", ['folder / "events.jsonl"', 'say(f"{run}/plan.json is gone")', 'folder / "logs" / "x"', 'f"{folder}/checkpoints/3"']
)
def test_the_walk_sees_a_path_that_is_spelt(source: str) -> None:
    assert len(spelt(source)) == 1


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_other_module_spells_what_lies_in_a_run_folder(file: Path) -> None:
    assert spelt(file.read_text()) == []


@pytest.mark.parametrize(
    ("place", "there"), [(None, "/runs/a/checkpoints"), ("/scratch/a", "/scratch/a"), ("s3://bucket/a", "s3://bucket/a")]
)
def test_checkpoints_are_where_checkpoint_dir_says_else_in_the_folder(place: str | None, there: str) -> None:
    config = decode({**TREE, "checkpoint": {"dir": place}})
    assert RunFolder(Path("/runs/a")).checkpoints(config) == there


def test_each_path_lies_in_the_folder_and_no_two_are_the_same() -> None:
    properties = [name for name, kind in vars(RunFolder).items() if isinstance(kind, property)]
    paths = [getattr(RunFolder(Path("/runs/a")), name) for name in properties]
    assert len(set(paths)) == len(paths) > 10
    assert all(path.is_relative_to("/runs/a") for path in paths)
