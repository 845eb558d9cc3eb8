"""Lines of text that are renewed in place on a terminal."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

_COLOURS = {"silent": "red", "slow": "yellow", "ended: failed": "red", "ended: guard": "red"}


def live(draw: Callable[[int, int], Sequence[str]], over: Callable[[], bool], every_s: float) -> None:
    """Show what `draw(width, height)` gives, again every `every_s` seconds, until `over` or Ctrl-C. The last lines stay."""
    console = Console(emoji=False, highlight=False)
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as shown:
        while True:
            last = over()
            shown.update(_styled(draw(console.width, console.height)), refresh=True)
            if last:
                return
            time.sleep(every_s)


def _styled(lines: Sequence[str]) -> Text:
    """The lines, the words of _COLOURS in colour."""
    text = Text("\n".join(lines), no_wrap=True)
    text.highlight_regex(r"exit \d+.*", "red")
    for word, colour in _COLOURS.items():
        text.highlight_words([word], colour)
    return text
