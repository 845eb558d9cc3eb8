"""All optimizers that are installed: their names, read from the text of torch and pytorch_optimizer, neither of them imported."""

import ast
from importlib.util import find_spec
from pathlib import Path

HOMES = {"torch": ("torch.optim", "optim/__init__.py"), "pytorch_optimizer": ("pytorch_optimizer", "optimizer/__init__.py")}
"""Package -> (module that has the classes, the file that lists them)."""
_LISTS = ("__all__", "OPTIMIZER_LIST")
_NO_OPTIMIZERS = ("Optimizer",)


def installed(package: str) -> bool:
    """Whether a package is there."""
    return find_spec(package) is not None


def sources() -> dict[str, str]:
    """The classes by their names in small letters: `prodigy` -> `pytorch_optimizer.Prodigy`. torch's own go first."""
    found: dict[str, str] = {}
    for package, (module, file) in HOMES.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            for name in _listed(Path(spec.origin).parent / file):
                found.setdefault(name.lower(), f"{module}.{name}")
    return found


def _listed(path: Path) -> list[str]:
    """The names in a file's list of classes."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError):
        return []
    names: list[str] = []
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in _LISTS and isinstance(node, ast.Assign | ast.AnnAssign):
            for part in ast.walk(node.value) if node.value is not None else ():
                names += [part.id] if isinstance(part, ast.Name) else []
                names += [part.value] if isinstance(part, ast.Constant) and isinstance(part.value, str) else []
    return [name for name in dict.fromkeys(names) if name[0].isupper() and name not in _NO_OPTIMIZERS]
