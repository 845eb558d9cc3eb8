"""Which modules in the same folder a Python file imports: parsed from its text, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path


def neighbours(path: Path) -> dict[str, Path]:
    """The modules beside `path` that it imports by name: name -> file, for a package its __init__.py or, without one, its folder.

    Empty for a file that is no Python.
    """
    found: dict[str, Path] = {}
    for name, level in _imports(path):
        top = name.partition(".")[0]
        beside = path.parent / top
        if level == 0 and top != path.stem:
            for file in (beside.with_name(f"{top}.py"), beside / "__init__.py"):
                if file.is_file():
                    found.setdefault(top, file)
            if top not in found and any(beside.glob("*.py")):
                found[top] = beside
    return found


def relative(path: Path) -> bool:
    """Whether a file imports from the package that it is in (`from .helper import rows`)."""
    return any(level for _, level in _imports(path))


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, dots before it) of every import in a file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
