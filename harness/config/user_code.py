"""Code the user named in the run file or by a flag: `file.py:Name` or `package.module:Name`. Names never come from a checkpoint.

It is imported as `python file.py` does it: the file's folder is on the path, so that modules beside it are found from any working
directory. A file in a package (a folder with __init__.py) is imported as that package's module, so that its relative imports work.
Data workers and processes that are spawned find it too: they get the path, and the module goes by its plain name.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.config.errors import UserError, did_you_mean
from harness.config.sibling_modules import neighbours

_OURS = ("harness", "launch")


def load_attribute(setting: str, name: str) -> Any:
    """The attribute `Name` of `path/to/file.py:Name`, or of `package.module:Name`, which may lie in a `folder/` before it.

    Raises UserError naming `setting`.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place:
        raise UserError(setting, f"is {name!r}", "write file.py:Name or package.module:Name")
    module = _of_file(setting, name, Path(place)) if place.endswith(".py") else _of_package(setting, place)
    if attribute not in vars(module):
        public = [n for n in vars(module) if not n.startswith("_")]
        remedy = did_you_mean(attribute, public) if public else f"define {attribute} there"
        raise UserError(setting, f"{place} has no {attribute!r}", remedy)
    return vars(module)[attribute]


def resolved(name: Any, base: Path) -> Any:
    """`name` with its file or folder made absolute, as seen from the folder `base`; any other word as it is."""
    if not isinstance(name, str) or ":" not in name:
        return name
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        return f"{base / place}:{attribute}"
    folder, _, module = place.rpartition("/")
    there = base / folder / module.replace(".", "/")
    beside = there.with_name(f"{there.name}.py").is_file() or (there / "__init__.py").is_file()
    return f"{base / folder}/{module}:{attribute}" if folder or beside else name


def package_of(path: Path) -> tuple[Path, str]:
    """(the folder that must be on the path, the dotted name) of a file: of a package's, the folder that holds the package."""
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder, parts = folder.parent, [folder.name, *parts]
    return folder, ".".join(parts)


def _of_file(setting: str, name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(setting, f"{name!r}: no file {path}", "give the path relative to the run file")
    path = Path(os.path.realpath(path))  # resolves links, as `python file.py` does
    root, dotted = package_of(path)
    _put_on_path(root)
    if root != path.parent and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last on the path: a module of a package may be called random.py
    _check_neighbours(setting, path)
    return _imported(setting, path, lambda: _named(dotted, path))


def _of_package(setting: str, place: str) -> ModuleType:
    folder, _, module = place.rpartition("/")
    if folder:
        _put_on_path(Path(os.path.realpath(folder)))
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        spec = None
    except (Exception, SystemExit):  # noqa: BLE001  of the package's __init__.py: told below
        return _imported(setting, Path(folder), lambda: importlib.import_module(module))
    if spec is None:
        where = f"in {folder}" if folder else "beside the run file, nor is it installed"
        raise UserError(setting, f"there is no module {module} {where}", "give package.module:Name, or file.py:Name")
    return _imported(setting, Path(spec.origin or folder), lambda: importlib.import_module(module))


def _put_on_path(folder: Path) -> None:
    """Put a folder first on sys.path, as Python does with the folder of the script that it runs."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _named(dotted: str, path: Path) -> ModuleType:
    """The module of a file, under its plain name where an import of that name finds it, else (`json.py`, a second `recipe.py`)
    under a name of ours."""
    module = sys.modules.get(dotted)
    if module is None and "." not in path.stem:
        spec = importlib.util.find_spec(dotted)
        if spec is not None and spec.origin is not None and os.path.realpath(spec.origin) == str(path):
            return importlib.import_module(dotted)
    if module is None or _file(module) != str(path):
        dotted = f"widebatch_user_{path.stem}"  # a name without dots: unpickling a class imports its parent packages
        module = sys.modules.get(dotted)
    if module is None or _file(module) != str(path):
        spec = importlib.util.spec_from_file_location(dotted, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = sys.modules[dotted] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[dotted]
            raise
    return module


def _file(module: ModuleType) -> str:
    """Where a module lies; empty for one that is not a file's."""
    file = vars(module).get("__file__")
    return os.path.realpath(file) if file else ""


def _check_neighbours(setting: str, path: Path) -> None:
    """Raise UserError where an import would give another module than the one that lies beside the file."""
    for name, beside in neighbours(path).items():
        taken = sys.modules.get(name)
        if taken is not None and beside.is_file() and name not in _OURS and _file(taken) != os.path.realpath(beside):
            at = f"{path} imports {name}, which is {_file(taken) or 'part of Python'} already, and not {beside}"
            raise UserError(setting, at, "rename that file")


def _imported(setting: str, path: Path, run: Callable[[], ModuleType]) -> ModuleType:
    """What `run` imports; a mistake in the user's code as UserError with the last of its lines that was reached."""
    try:
        return run()
    except SyntaxError as e:
        raise UserError(setting, f"{e.filename or path} line {e.lineno}: {e.msg}", "fix that line") from e
    except (Exception, SystemExit) as e:
        frames = traceback.extract_tb(e.__traceback__)
        own = [x for x in frames if Path(x.filename).is_relative_to(path.parent) and "site-packages" not in x.filename]
        where = f"{own[-1].filename} line {own[-1].lineno}" if own else str(path)
        raise UserError(setting, f"{where}: {type(e).__name__}: {e}", "fix that line") from e
