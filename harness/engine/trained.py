"""Which of a model's parameters are trained, decided once; and those of them that nothing used in a pass.

A trained parameter that nothing used has a gradient of zero, on every backend and on every rank: its update does not depend
on which rank got which samples.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from harness.config.errors import UserError
from harness.distributed.process_group import gather

NAMED = 4
"""The most parameters that a message names."""


@final
class Trained:
    """The trained parameters of a model, as `requires_grad` says when its optimizer is made."""

    def __init__(self, model: nn.Module) -> None:
        named = list(model.named_parameters())
        self._names, self._parameters = [name for name, _ in named], [p for _, p in named]
        self._flags = [p.requires_grad for p in self._parameters]
        self.names = [name for name, p in named if p.requires_grad]
        self.parameters = [p for _, p in named if p.requires_grad]

    def __iter__(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, itself) of each that is trained."""
        return zip(self.names, self.parameters, strict=True)

    def check(self, stand_ins: Mapping[int, Tensor] | None = None) -> None:
        """Raises UserError if a parameter was frozen, or is no longer, since: it is not reduced over ranks, or not saved.

        `stand_ins`: tensors that passes see in the place of parameters, by a parameter's id.
        """
        now = [p.requires_grad for p in self._parameters]
        if stand_ins:
            now = [stand_ins.get(id(p), p).requires_grad for p in self._parameters]
        if now != self._flags:
            changed = [name for name, was, flag in zip(self._names, self._flags, now, strict=True) if was != flag]
            done = "frozen" if self._flags[self._names.index(changed[0])] else "unfrozen"
            at = f"requires_grad of {listed(changed)} was changed during the run ({done}), which no backend supports"
            remedy = "decide it in model(); to train other weights later, begin a new run from `widebatch export`'s file"
            raise UserError("recipe.use", at, remedy)

    def unreached(self, root: Tensor) -> list[tuple[str, nn.Parameter]]:
        """(name, itself) of those that the graph leading to `root` does not reach."""
        found = leaves(root)
        return [(name, p) for name, p in self if id(p) not in found]


@final
class Unused:
    """The trained parameters that had no gradient on this rank, until the first window is read."""

    def __init__(self) -> None:
        self.looking = True
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """A parameter had no gradient in this step."""
        if self.looking:
            self.names.append(name)

    def notes(self, trained: Trained) -> list[str]:
        """The notes for the user, once; all ranks call it."""
        self.looking = False
        return unused_note(self.names, trained.names)


def leaves(root: Tensor) -> set[int]:
    """The ids of the tensors to whose gradients the backward of `root` adds; it may have run already."""
    found, seen, todo = set[int](), set[Any](), [root.grad_fn]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not node.next_functions:
            found.add(id(getattr(node, "variable", None)))
        todo += [follows for follows, _ in node.next_functions]
    return found


def unused_note(mine: Sequence[str], names: Sequence[str]) -> list[str]:
    """The notes about the first step; all ranks call it. `mine` of the trained `names` had no gradient on this rank."""
    everyone = gather(list(mine))
    nowhere = [name for name in mine if all(name in one for one in everyone)]
    if not nowhere:
        return []
    text = f"no gradient reached {len(nowhere)} of {len(names)} trained parameters in the first step ({listed(nowhere)}): "
    text += "it is taken as zero, so weight decay and momentum still move them; set requires_grad_(False) on unused parameters"
    return [text]


def listed(names: Iterable[str]) -> str:
    """The first of some names, and how many there are beside them."""
    held = list(names)
    more = f" and {len(held) - NAMED} more" if len(held) > NAMED else ""
    return ", ".join(held[:NAMED]) + more
