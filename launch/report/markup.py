"""HTML that cannot be injected into: whatever is no `Html` is text, and is escaped where it enters. Pure."""

from collections.abc import Mapping
from html import escape
from typing import final

VOID = ("meta", "path", "line", "rect", "br", "input")
"""Elements without content."""


@final
class Html(str):
    """Text that is markup already. Only `element` and `joined` make it of parts; `raw` is for the package's own files."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, str], *children: str) -> Html:
    """One element. Values of attributes are escaped, and so is every child that is no Html."""
    told = "".join(f' {key}="{escape(value, quote=True)}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{told}>" if name in ("meta", "br", "input") else f"<{name}{told}/>")
    return Html(f"<{name}{told}>{joined(*children)}</{name}>")


def joined(*children: str) -> Html:
    """Several children, one after another."""
    return Html("".join(child if isinstance(child, Html) else escape(child, quote=True) for child in children))


def raw(text: str) -> Html:
    """Markup that we wrote ourselves: never a run's text."""
    return Html(text)
