"""Muon for the matrices inside the blocks and AdamW for all other parameters, as one optimizer with one state."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from typing_extensions import override

from harness.config.errors import UserError
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


@final
class MuonAdamW(Optimizer):
    """torch.optim.Muon over the groups with `use_muon`, torch.optim.AdamW over the others; both step on this one's state.

    Muon's update has the size of AdamW's (`match_rms_adamw`: lr x 0.2 sqrt(max(rows, columns))), so that a rate and a weight decay
    tuned for AdamW are of the right order for both (Liu et al. 2025, arXiv 2502.16982, section 2.2).
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8
    ) -> None:
        given = [g | ({"momentum": momentum} if g["use_muon"] else {"betas": betas, "eps": eps}) for g in groups]
        kinds = [(Muon, {"adjust_lr_fn": "match_rms_adamw"}), (AdamW, {})]
        self._parts: list[Muon | AdamW] = [
            kind([g for g in given if g["use_muon"] == (kind is Muon)], lr=lr, **more)
            for kind, more in kinds
            if any(g["use_muon"] == (kind is Muon) for g in given)
        ]
        super().__init__([g for part in self._parts for g in part.param_groups], {"lr": lr})

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Both parts' steps. Loading a state makes new groups and a new state, so the parts are given them each time."""
        for part in self._parts:
            part.state = self.state
            part.param_groups = [g for g in self.param_groups if g["use_muon"] == isinstance(part, Muon)]
            part.step()  # type: ignore[no-untyped-call]


def split_muon(groups: list[dict[str, Any]], recipe: Recipe, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """The groups for MuonAdamW: the matrices inside the recipe's blocks are Muon's (Jordan et al. 2024), all else AdamW's.

    Raises UserError if the recipe's blocks hold no matrix.
    """
    hidden = {id(p) for block in recipe.blocks(model) for p in block.parameters() if p.ndim == 2 and not torch.is_complex(p)}
    if not hidden:
        remedy = "give it blocks(model) that hold the linear layers, or use adamw"
        raise UserError("optim.name", "is muon, but the recipe names no blocks with matrices", remedy)
    apart = 1.0 if plan.adamw_lr is None else plan.adamw_lr / plan.target_lr
    split = []
    for group in groups:
        for inside in (True, False):
            chosen = [p for p in group["params"] if (id(p) in hidden) == inside]
            scale = group["lr_scale"] * (1.0 if inside else apart)
            if chosen:
                split.append(group | {"params": chosen, "lr_scale": scale, "use_muon": inside})
    return split
