"""The progress of a series of runs: a bar with the time left on a terminal, a line for each end elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.supervision.output_redirect import outlive_readers
from harness.watch.plan_table import shown
from harness.watch.plot_file import what_is_missing


@contextmanager
def series(title: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A series of `total` runs of which `done` are over. Gives a function that reports the end of one more, with a line of text.

    Every series ends in a plot: if none can be drawn, that is said first.
    """
    outlive_readers()
    console = console or Console(emoji=False)
    if missing := what_is_missing():
        console.print(missing, soft_wrap=True, highlight=False, markup=False)
    with counted(title, total, done, console) as told:
        yield told


@contextmanager
def counted(title: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """As `series`, for `total` steps that do not end in a plot."""
    console = console or Console(emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    count = done
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def told(text: str) -> None:
            nonlocal count
            count += 1
            console.print(f"[dim]{count}/{total}[/dim] {shown(text)}", soft_wrap=True, highlight=False)
            bar.advance(task)

        yield told
