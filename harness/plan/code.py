"""Code the user named in the run file or by a flag: `file.py:Name`. Names never come from a checkpoint."""

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.plan.errors import UserError, did_you_mean


def load_attribute(setting: str, name: str) -> Any:
    """Import `path/to/file.py` and return its attribute. Raises UserError naming `setting`."""
    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise UserError(setting, f"{name!r}: no file {path}", "give the path relative to the run file")
    module_name = f"widebatch_user.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(setting, f"{path} is not a Python file", "give a file that ends in .py")
    module = sys.modules.get(module_name)
    if module is None or Path(str(module.__file__)) != path:
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except SyntaxError as e:
            del sys.modules[module_name]
            raise UserError(setting, f"{path} line {e.lineno}: {e.msg}", "mend that line") from e
        except Exception as e:
            del sys.modules[module_name]
            line = next((x.lineno for x in reversed(traceback.extract_tb(e.__traceback__)) if x.filename == str(path)), 0)
            raise UserError(setting, f"{path} line {line}: {type(e).__name__}: {e}", "mend that line") from e
    if attribute not in vars(module):
        public = [n for n in vars(module) if not n.startswith("_")]
        remedy = did_you_mean(attribute, public) if public else f"define {attribute} there"
        raise UserError(setting, f"{path} has no {attribute!r}", remedy)
    return vars(module)[attribute]
