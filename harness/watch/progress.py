"""The progress of a series of runs: a bar with the time left on a terminal, a line for each end elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def series(title: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A series of `total` runs of which `done` are over. Gives a function to tell one more end, with a line of text."""
    console = console or Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    count = done
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def told(text: str) -> None:
            nonlocal count
            count += 1
            console.print(f"[dim]{count}/{total}[/dim] {escape(text)}", soft_wrap=True, highlight=False)
            bar.advance(task)

        yield told
