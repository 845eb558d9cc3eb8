"""Paths at which a command writes, such as that of --out: on this machine, and never a URL."""

from collections.abc import Callable
from pathlib import Path

from harness.config.errors import UserError
from harness.config.urls import is_url
from harness.supervision.safe_files import write_own


def local_path(flag: str) -> Callable[[str], Path]:
    """The `type` of an argument: a path. It raises UserError for a URL: a folder here would be named after what is in it."""

    def path(text: str) -> Path:
        if is_url(text):
            raise UserError(flag, f"is {text!r}, a URL", "give a path on this machine, with ./ before it if that is its name")
        return Path(text)

    return path


def write_out(path: Path, text: str) -> None:
    """Write the file of --out, whole or not at all; into a device, a pipe or what a link leads to. Raises UserError."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")
        else:
            write_own(path, text)
    except OSError as e:
        raise UserError("--out", f"{path} cannot be written ({e.strerror})", "give a file in a folder that is there") from e
