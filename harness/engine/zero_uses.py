"""Which trained parameters each pass uses, where DeepSpeed shards them: always the same ones, on all ranks."""

from functools import partial
from typing import Any, final

from torch import Tensor

from harness.config.errors import UserError
from harness.distributed.process_group import gather
from harness.engine.trained import Trained, listed


@final
class Uses:
    """What passes use of the trained parameters: with DeepSpeed's shards always the same, on all ranks.

    Ranks that use others would add unlike gradients together, and zero3 keeps the last step's for a parameter that has none.
    """

    def __init__(self, trained: Trained, zero: Any, backend: str) -> None:
        self._trained, self._zero, self._backend = trained, zero, backend
        self._strayed = ""
        self._expected = len(trained.parameters)
        self._counted = "fp32_groups_gradients_flat" not in vars(zero)  # zero1 in bf16 reduces all of its buffer, zeros included
        self.root: Tensor | None = None
        """The loss of the pass."""
        self.first = True
        """Whether this is the first step."""
        self.never: list[str] | None = None
        """Trained parameters that no pass uses, from the first pass on."""

    def check(self) -> None:
        """Check a pass after its backward, before its last gradients are reduced.

        Raises UserError, in the first step on all ranks.
        """
        assert self.root is not None  # noqa: S101  set before the backward
        root, self.root = self.root, None
        if self.first:
            self._compare(root)
        elif self._counted and (self._zero._hooks_fired_this_backward < self._expected or self._strayed):
            self._trained.check()
            missing = [name for name, _ in self._trained.unreached(root) if name not in (self.never or ())]
            raise self._refused(
                f"no gradient reached {listed(missing)}" if missing else f"{self._strayed} got its first gradient after step 1"
            )

    def _compare(self, root: Tensor) -> None:
        """A pass of the first step; the first of them decides."""
        unused = self._trained.unreached(root)
        mine = [name for name, _ in unused]
        everyone = [*gather(mine), mine if self.never is None else self.never]
        if self._counted and any(one != everyone[0] for one in everyone):
            some = [name for name in self._trained.names if 0 < sum(name in one for one in everyone) < len(everyone)]
            raise self._refused(f"some passes of the first step gave {listed(some)} no gradient")
        if self.never is not None:
            return
        self.never = mine
        self._expected -= len(unused)
        for name, p in unused if self._counted else ():
            p.register_post_accumulate_grad_hook(partial(self._stray, name))  # type: ignore[no-untyped-call]

    def _stray(self, name: str, _: Tensor) -> None:
        self._strayed = name

    def _refused(self, what: str) -> UserError:
        at = f"is {self._backend}, which needs the same parameters in every pass on every rank, and {what}"
        remedy = "use backend.name: ddp, zero0 or fsdp, or requires_grad_(False) on unused parameters"
        return UserError("backend.name", at, remedy)
