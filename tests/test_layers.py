"""The floors of the house: imports go down only, each foreign power lives in its own file, and files stay small.

Read from the source with ast, so that an import inside a function counts too. The rules are those of DESIGN.md.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from launch.commands import COMMANDS

ROOT = Path(__file__).parent.parent
FILES = sorted(str(f.relative_to(ROOT)) for top in ("harness", "launch") for f in (ROOT / top).rglob("*.py"))
MOST_LINES = 300
LONGER = {"harness/plan/config.py": 450}
"""The list of all settings with their meanings is one idea, and long."""

FLOORS = {
    "harness/__init__.py": 0,
    "harness/plan/": 0,
    "harness/stats/": 0,
    "harness/survive/": 0,
    "harness/parts/": 1,
    "harness/recipes/": 1,
    "harness/engine/": 2,
    "harness/train.py": 3,
    "harness/evaluate.py": 3,
    "harness/faults.py": 3,
    "harness/reference.py": 3,
    "harness/resuming.py": 3,
    "harness/saving.py": 3,
    "harness/telling.py": 3,
    "harness/verifying.py": 3,
    "harness/noticing.py": 3,
    "harness/pace.py": 3,
    "harness/guarding.py": 3,
    "harness/adapting.py": 3,
    "harness/watch/": 4,
    "harness/worker.py": 4,
    "harness/checkup.py": 4,
    "harness/series.py": 4,
    "harness/probe.py": 3,
    "harness/__main__.py": 4,
    "launch/": 5,
}
L0_FOREIGN = {"msgspec", "yaml", "numpy"}
"""What L0 may import beside the standard library; numpy for the sample order."""
HOMES = {
    "accelerate": ("harness/engine/", "harness/watch/trackers.py"),
    "deepspeed": ("harness/engine/",),
    "wandb": ("harness/watch/wandb.py",),
    "wandb_workspaces": ("harness/watch/dashboard.py",),
    "transformers": ("harness/watch/trainer.py", "harness/recipes/causal_lm.py"),
    "rich": ("harness/watch/",),
    "subprocess": ("launch/local.py", "launch/jobs.py", "harness/engine/staging.py"),
    "fsspec": ("harness/engine/stores.py",),
    "matplotlib": ("harness/watch/plot.py",),
}
TORCH = {"torch", "torchvision", "timm", "transformers", "pytorch_optimizer", "safetensors"}


@cache
def imports(file: str) -> tuple[tuple[str, bool], ...]:
    """(module, whether at module level) of every import in a file; `from a import b` gives `a` and `a.b`.

    What stands under `if TYPE_CHECKING` counts as an import: a floor is a floor for types too.
    """
    tree = ast.parse((ROOT / file).read_text())
    package = file.removesuffix(".py").removesuffix("/__init__").split("/")[: None if file.endswith("__init__.py") else -1]
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        found += [(name, id(node) not in inside) for name in names]
    return tuple(found)


def file_of(module: str) -> str | None:
    """The file of one of our modules, None for another's, or for a name inside a module."""
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if (ROOT / f).is_file()), None)


def floor(file: str) -> int:
    """The floor a file is on: of the longest prefix in FLOORS. A file on no floor is a failure."""
    homes = [h for h in FLOORS if file == h or (h.endswith("/") and file.startswith(h))]
    assert homes, f"{file} is on no floor: say in FLOORS (and DESIGN.md) which"
    return FLOORS[max(homes, key=len)]


def ours(file: str, *, module_level_only: bool = False) -> set[str]:
    """Our own files that a file imports, package `__init__` of plain parents left out."""
    found = {file_of(name) for name, top in imports(file) if top or not module_level_only}
    return {f for f in found if f is not None}


def powers(file: str) -> set[str]:
    """Top-level names of everything a file imports."""
    return {name.partition(".")[0] for name, _ in imports(file)}


def test_the_walk_sees_the_code_and_its_imports() -> None:
    assert len(FILES) > 30
    assert ("harness.plan.errors", True) in imports("harness/plan/rules.py")
    assert "torch" in powers("harness/engine/ddp.py")
    assert any(not top for f in FILES for _, top in imports(f)), "imports inside functions are seen too"
    assert "harness/plan/errors.py" in ours("harness/plan/rules.py")


def test_every_floor_has_its_files() -> None:
    assert [h for h in FLOORS if not any(f == h or f.startswith(h) for f in FILES)] == []


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_only(file: str) -> None:
    assert [f for f in sorted(ours(file)) if floor(f) > floor(file)] == []


@pytest.mark.parametrize("file", [f for f in FILES if floor(f) == 0])
def test_numbers_come_before_tensors(file: str) -> None:
    allowed = set(sys.stdlib_module_names) | L0_FOREIGN | {"harness"}
    assert powers(file) - allowed == set()


@pytest.mark.parametrize("power", HOMES)
def test_each_foreign_power_has_one_home(power: str) -> None:
    homes = HOMES[power]
    strangers = [f for f in FILES if power in powers(f) and not f.startswith(homes)]
    assert strangers == []


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("launch/")])
def test_launch_starts_without_anything_heavy(file: str) -> None:
    names = [name for name, top in imports(file) if top and name.partition(".")[0] in ("harness", "launch")]
    light = ("harness.plan", "harness.stats", "harness.survive", "harness.watch.table", "launch")
    assert [n for n in names if n not in ("harness", "harness.watch") and not n.startswith(light)] == []
    top_level = {name.partition(".")[0] for name, top in imports(file) if top}
    assert top_level & TORCH == set()


def test_the_table_that_launch_shows_plans_with_imports_no_torch() -> None:
    seen: set[str] = set()
    todo = ["launch/cli.py", *(f"launch/{name.replace('-', '_')}.py" for name in COMMANDS)]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        found = [name for name, top in imports(file) if top]
        assert {n.partition(".")[0] for n in found} & TORCH == set(), file
        parents = [".".join(n.split(".")[:i]) for n in found for i in range(1, n.count(".") + 2)]
        todo += [f for f in map(file_of, parents) if f]
    assert "harness/plan/plan.py" in seen


@pytest.mark.parametrize("file", FILES)
def test_a_file_holds_one_idea(file: str) -> None:
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= LONGER.get(file, MOST_LINES)
    assert Path(file).stem not in ("utils", "util", "helpers", "common", "misc")
    assert ast.get_docstring(ast.parse(text)), "the file says its idea at its top"


def test_the_floor_of_numbers_leaves_torch_out_when_it_runs() -> None:
    modules = [f.removesuffix(".py").replace("/", ".") for f in FILES if floor(f) == 0 and not f.endswith("__init__.py")]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
