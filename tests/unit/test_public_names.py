"""The names that users write against, imported from `harness` alone."""

import ast
import inspect
import subprocess
import sys
import textwrap

import pytest

import harness
from harness.config.old_paths import MOVED
from tests.support.processes import ROOT

NAMES = [
    "LightningGuard", "OrderBatchSampler", "OrderSampler", "PassNoise", "Plan", "Recipe", "Run", "Spikes", "Table", "Telemetry",
    "TokenFiles", "TrainerGuard", "UserError", "World", "arguments_for", "gather_rows", "load", "make_plan", "mixture",
    "open_dataset", "planned", "train",
]  # fmt: skip


def test_the_list_of_public_names_is_kept() -> None:
    assert harness.__all__ == NAMES
    assert dir(harness) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there_and_documented(name: str) -> None:
    assert getattr(harness, name).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_what_it_raises_is_in_its_docstring_and_each_method_has_one(name: str) -> None:
    thing = getattr(harness, name)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(tree, ast.ClassDef | ast.FunctionDef)
    parts = [n for n in tree.body if isinstance(n, ast.FunctionDef)] if isinstance(tree, ast.ClassDef) else [tree]
    for part in parts:
        own = ast.get_docstring(part) or ""
        told = f"{own} {thing.__doc__}"
        assert own or part.name.startswith("_"), part.name
        kinds = {ast.unparse(n.exc.func) for n in ast.walk(part) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)}
        assert [kind for kind in kinds - {"AssertionError"} if f"Raises {kind}" not in told] == [], part.name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'harness' has no attribute 'Trainer'"):
        _ = harness.Trainer


def test_importing_the_package_and_planning_import_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from harness import World, load, make_plan\n"
        "print(make_plan(load(Path('configs/digits.yaml')), World(size=8)).global_batch, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["256", "False"]


def test_what_version_0_1_told_people_to_import_is_found_with_a_word_on_its_new_name() -> None:
    lines = [f"import {old} as a, {new} as b; assert a is b, '{old}'" for old, (new, _) in MOVED.items()]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True)
    for old, (_, write) in MOVED.items():
        assert f"{old} is now" in done.stderr
        namespace: dict[str, object] = {}
        exec(write, namespace)  # noqa: S102
        assert len(namespace) == 2
    gone = subprocess.run(
        [sys.executable, "-c", "import harness.parts.nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "No module named 'harness.parts.nothing'" in gone.stderr
