"""The layers of the house: imports go down only, each dependency lives in its own file, and files stay small.

Read from the source with ast, so that an import inside a function counts too. The rules are those of harness/README.md.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from launch.options.commands import MODULES

ROOT = Path(__file__).parents[2]
FILES = sorted(str(f.relative_to(ROOT)) for top in ("harness", "launch") for f in (ROOT / top).rglob("*.py"))
MOST_LINES = 500
LAYERS = {
    "harness/__init__.py": 4,
    "harness/config/": 0,
    "harness/plan/": 0,
    "harness/data/": 1,
    "harness/data/sample_order.py": 0,
    "harness/data/mixed_order.py": 0,
    "harness/data/shuffles.py": 0,
    "harness/telemetry/": 0,
    "harness/analysis/": 0,
    "harness/supervision/": 0,
    "harness/distributed/": 1,
    "harness/recipes/": 1,
    "harness/modeling/": 1,
    "harness/checkpoint/": 2,
    "harness/engine/": 2,
    "harness/watch/": 3,
    "harness/training/": 3,
    "harness/tools/": 4,
    "harness/worker.py": 4,
    "harness/__main__.py": 4,
    "launch/": 5,
}
L0_FOREIGN = {"msgspec", "yaml", "numpy", "orjson"}
"""What L0 may import beside the standard library; numpy for the sample order, orjson for journals."""
HOMES = {
    "accelerate": ("harness/engine/", "harness/distributed/process_group.py", "harness/watch/trackers.py"),
    "deepspeed": ("harness/engine/",),
    "wandb": ("harness/watch/wandb.py",),
    "wandb_workspaces": ("harness/watch/wandb_workspace.py",),
    "transformers": (
        "harness/watch/hf_callback.py",
        "harness/watch/hf_trainer.py",
        "harness/watch/hf_guard.py",
        "harness/recipes/pretrained.py",
    ),
    "peft": ("harness/recipes/lora.py",),
    "lightning": ("harness/watch/lightning_guard.py",),
    "rich": ("harness/watch/",),
    "subprocess": (
        "launch/processes/spawn.py",
        "launch/processes/job_pool.py",
        "harness/checkpoint/staging.py",
        "harness/watch/git_info.py",
    ),
    "fsspec": ("harness/checkpoint/storage.py",),
    "matplotlib": ("harness/watch/plot_file.py",),
    "psutil": ("harness/engine/node_sampler.py",),
    "pynvml": ("harness/engine/node_sampler.py",),
    "pyarrow": ("harness/data/arrow_columns.py",),
    "datasets": ("harness/data/arrow_columns.py",),
}
TORCH = {"torch", "torchvision", "timm", "transformers", "pytorch_optimizer", "safetensors"}


@cache
def imports(file: str) -> tuple[tuple[str, bool], ...]:
    """(module, whether at module level) of every import in a file; `from a import b` gives `a` and `a.b`.

    What stands under `if TYPE_CHECKING` counts as an import: a layer is a layer for types too.
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


def layer(file: str) -> int:
    """The layer a file is on: of the longest prefix in LAYERS. A file on no layer is a failure."""
    homes = [h for h in LAYERS if file == h or (h.endswith("/") and file.startswith(h))]
    assert homes, f"{file} is on no layer: say in LAYERS (and harness/README.md) which"
    return LAYERS[max(homes, key=len)]


def ours(file: str, *, module_level_only: bool = False) -> set[str]:
    """Our own files that a file imports, package `__init__` of plain parents left out."""
    found = {file_of(name) for name, top in imports(file) if top or not module_level_only}
    return {f for f in found if f is not None}


def dependencies(file: str) -> set[str]:
    """Top-level names of everything a file imports."""
    return {name.partition(".")[0] for name, _ in imports(file)}


def test_the_walk_sees_the_code_and_its_imports() -> None:
    assert len(FILES) > 30
    assert ("harness.config.errors", True) in imports("harness/plan/scaling_rules.py")
    assert "torch" in dependencies("harness/engine/ddp.py")
    assert any(not top for f in FILES for _, top in imports(f)), "imports inside functions are seen too"
    assert "harness/config/errors.py" in ours("harness/plan/scaling_rules.py")


def test_every_layer_has_its_files() -> None:
    assert [h for h in LAYERS if not any(f == h or f.startswith(h) for f in FILES)] == []


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_only(file: str) -> None:
    assert [f for f in sorted(ours(file)) if layer(f) > layer(file)] == []


@pytest.mark.parametrize("file", [f for f in FILES if layer(f) == 0])
def test_numbers_come_before_tensors(file: str) -> None:
    allowed = set(sys.stdlib_module_names) | L0_FOREIGN | {"harness"}
    assert dependencies(file) - allowed == set()


@pytest.mark.parametrize("dependency", HOMES)
def test_each_dependency_has_one_home(dependency: str) -> None:
    homes = HOMES[dependency]
    strangers = [f for f in FILES if dependency in dependencies(f) and not f.startswith(homes)]
    assert strangers == []


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("launch/")])
def test_launch_starts_without_anything_heavy(file: str) -> None:
    names = [name for name, top in imports(file) if top and name.partition(".")[0] in ("harness", "launch")]
    without_torch = tuple(f"harness.checkpoint.{m}" for m in ("manifest", "storage", "verified", "state_check", "train_state"))
    rooms = tuple(f"harness.{room}" for room in ("config", "plan", "telemetry", "analysis", "supervision", "watch.plan_table"))
    light = (*rooms, "launch", *without_torch)
    assert [n for n in names if n not in ("harness", "harness.watch") and not n.startswith(light)] == []
    top_level = {name.partition(".")[0] for name, top in imports(file) if top}
    assert top_level & TORCH == set()


def test_the_table_that_launch_shows_plans_with_imports_no_torch() -> None:
    seen = {"harness/__init__.py"}  # whose imports are for type checkers alone
    todo = ["launch/cli.py", *(f"{module.replace('.', '/')}.py" for module in MODULES.values())]
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
    assert len(text.splitlines()) <= MOST_LINES
    assert Path(file).stem not in ("utils", "util", "helpers", "common", "misc")
    assert ast.get_docstring(ast.parse(text)), "the file says its idea at its top"


def test_the_layer_of_numbers_leaves_torch_out_when_it_runs() -> None:
    modules = [f.removesuffix(".py").replace("/", ".") for f in FILES if layer(f) == 0 and not f.endswith("__init__.py")]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
