"""Names that users give and that reach a shell, a path or another tool: each matched whole against what is allowed."""

import os
import re
import sys
from datetime import datetime

from harness.config.errors import UserError

_SIGNS = r"\w.~@+=,:()\[\]#%&'\-"
FOLDER = rf"(?!-)[{_SIGNS}/]([{_SIGNS}/ ]{{0,1022}}[{_SIGNS}/])?"
"""A folder here: letters of any language, digits, blanks within, and common signs; quoted where it is shown in a command."""
FILE = rf"(?!-)[{_SIGNS}]([{_SIGNS} ]{{0,198}}[{_SIGNS}])?"
"""A part of a path."""
PROJECT = r"[A-Za-z0-9]([A-Za-z0-9 ._-]{0,126}[A-Za-z0-9._-])?"
"""A project in W&B, which forbids / \\ # ? % and :."""


def checked(setting: str, value: str, allowed: str, remedy: str) -> str:
    """`value`, if the whole of it is `allowed` (a regular expression). Raises UserError."""
    check_locale(setting, value)
    if re.fullmatch(allowed, value) is None:
        raise UserError(setting, f"is {value!r}", remedy)
    return value


def check_locale(setting: str, value: str) -> None:
    """Raise UserError where `value` cannot be the name of a file as this process writes names, as beyond ASCII under LC_ALL=C."""
    coding, foreign = sys.getfilesystemencoding(), any("\ud800" <= sign <= "\udfff" for sign in value)
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        foreign = True
    if foreign:
        remedy = "rename it" if coding == "utf-8" else "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        raise UserError(setting, f"is {value!r}, which is no name in {coding}, as this process writes names", remedy)


def checked_folder(setting: str, value: str) -> str:
    """A folder on this machine. Raises UserError."""
    return checked(setting, value, FOLDER, "give a path of letters, digits, blanks and . _ - + = @ , : ~ # % & ' ( ) [ ] only")


def new_folder(stem: str, now: datetime) -> str:
    """The run folder of a run file of this name that names none. Raises UserError."""
    return f"runs/{checked('run file', stem, FILE, 'rename it, or give run.dir')}-{now:%Y%m%d-%H%M%S}"
