"""An error in users' code as it is shown: their own frames first, with file and line; those of libraries are folded. Pure."""

import sys
import sysconfig
import traceback
from bdb import BdbQuit
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from harness.config.errors import printable

BUGS = (KeyError, NameError, AttributeError, TypeError, RecursionError)
"""Exceptions that show a bug in a program, not a fault of the data it reads."""
OWN_BUGS = (IndexError, AssertionError, ImportError, NotImplementedError)
"""Exceptions that show a bug where users' code raised them: a library also raises them for damaged data."""
SHOWN = 5
"""Frames of users' code that are shown, the innermost first."""
_HOUSE = Path(__file__).parents[2]
_LIBRARIES = tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class BugError(Exception):
    """An error in users' code that another process of this rank met. The text is what `explain` gave there."""


class QuitError(Exception):
    """A debugger was left, or had no terminal, in another process of this rank."""


class ExitedError(Exception):
    """Users' code called exit(), or raised SystemExit: without an error the run would look as if it were over."""


def as_error(error: BaseException) -> BaseException:
    """`error` itself, or for a SystemExit an ExitedError with the same traceback."""
    if not isinstance(error, SystemExit):
        return error
    code = "" if error.code is None else repr(error.code)
    return ExitedError(f"exit({code}) was called").with_traceback(error.__traceback__)


def is_own(file: str) -> bool:
    """Whether a file is users' code: neither ours, nor a library's, nor made up by one (`<string>`, `<frozen runpy>`)."""
    path = Path(file).resolve()
    ours = any(path.is_relative_to(_HOUSE / package) for package in ("harness", "launch"))
    installed = "site-packages" in path.parts or "dist-packages" in path.parts
    return not (file.startswith("<") or ours or installed or any(path.is_relative_to(library) for library in _LIBRARIES))


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of users' code that an error came through, the innermost first."""
    return [frame for frame in reversed(traceback.extract_tb(error.__traceback__)) if is_own(frame.filename)]


def place(error: BaseException) -> str:
    """`FILE, line N, in NAME` of the innermost frame of users' code; nothing if there is none."""
    frame = next(iter(own_frames(error)), None)
    return "" if frame is None else _place(frame)


def summary(error: BaseException) -> str:
    """An error in one line, with its place in users' code."""
    return printable(_summary(error))


def _summary(error: BaseException) -> str:
    if is_quit(error):
        remedy = str(error) or ("" if sys.stdin.isatty() else "there is no terminal here: use widebatch train")
        return f"the debugger was left{f' ({remedy})' if remedy else ''}"
    if isinstance(error, BugError):
        first, second, *_ = [*str(error).splitlines(), ""]
        return f"{first} ({second.strip().removeprefix('in ')})"
    at = place(error)
    return f"{_line(error)}{f' ({at})' if at else ''}"


def explain(error: BaseException) -> str:
    """An error as a person should read it; the whole traceback where no code of users is in it. Ends with a line break."""
    return printable(_explanation(error))


def _explanation(error: BaseException) -> str:
    if isinstance(error, BugError):
        return str(error)
    if is_quit(error):
        return f"{summary(error)}\n"
    if not any(own_frames(one) for one in _causes(error)):
        return "".join(traceback.format_exception(error))
    return "because of ".join(_block(one) for one in _causes(error))


def is_bug(error: BaseException) -> bool:
    """Whether an error is one of users' program."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, BUGS) or (isinstance(error, OWN_BUGS) and bool(frames) and is_own(frames[-1].filename))


def is_quit(error: BaseException) -> bool:
    """Whether a debugger was left by its `q`."""
    return isinstance(error, BdbQuit | QuitError)


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error that ends the program, for `sys.excepthook`."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        sys.stderr.write(explain(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, as Python would show them, the last one first."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _block(error: BaseException) -> str:
    frames, every = own_frames(error), traceback.extract_tb(error.__traceback__)
    lines = [_message(error)]
    for number, frame in enumerate(frames[:SHOWN]):
        lines.append(f"  {'in' if number == 0 else 'called by'} {_place(frame)}" + (f"\n    {frame.line}" if frame.line else ""))
    if every and not is_own(every[-1].filename):
        lines.append(f"  raised in {_place(every[-1])}")
    folded = len(every) - len(frames[:SHOWN])
    if folded:
        lines.append(f"  ({folded} more frames, most of them of libraries, are not shown)")
    return "\n".join(lines) + "\n"


def _message(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).rstrip()


def _line(error: BaseException) -> str:
    first = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {first[0]}"


def _place(frame: traceback.FrameSummary) -> str:
    return f'File "{frame.filename}", line {frame.lineno}, in {frame.name}'
