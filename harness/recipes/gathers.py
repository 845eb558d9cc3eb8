"""A loss that gathers over ranks, as contrastive losses do: each pass needs equally many rows on every rank, or the ranks hang.

A recipe says so by `gathers = True`; one that does not, and communicates all the same, is refused before the first step.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.recipes.distributed_calls import watched_calls, watched_questions


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, for a loss that compares each row with all others (CLIP), in a recipe with `gathers = True`.

    `rows`: float [n, ...] of this rank, n the same on every rank. Returns them with those of all ranks, [ranks x n, ...], and the
    number of this rank's first row among them. The gradient reaches the rows of every rank: where each rank sums its own rows'
    losses, loss and gradient are those of one process with all rows. Source: Radford et al. 2021, 2103.00020.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows)), dist.get_rank() * len(rows)  # type: ignore[no-untyped-call]


def check_gathers(recipe: Recipe, config: Config, plan: Plan, valid: int) -> list[str]:
    """The notes about a recipe whose loss gathers; `valid`: its validation rows, 0 without validation.

    Raises UserError where the plan would give ranks unequal rows, or a loss that depends on how a step is cut into passes.
    """
    if not recipe.gathers:
        return []
    batch, total, ranks = plan.global_batch, plan.total_samples, plan.processes
    if plan.world_size != ranks:
        at = f"is {plan.world_size}, and the loss gathers over ranks: simulated ranks cannot gather"
        raise UserError("--simulate-world", at, "start as many processes as ranks: widebatch launch")
    if plan.passes > 1:
        at = f"is {plan.micro_batch}, so that a step has {plan.passes} passes, and the loss gathers the rows of one pass alone"
        raise UserError("batch.micro", at, f"raise it to {batch // ranks}, or lower the batch, so that a step is one pass")
    if config.batch.grow != "none" or config.batch.most is not None:
        at = "changes the batch by accumulation, and the loss gathers the rows of one pass alone"
        raise UserError("batch.grow", at, "leave it out")
    for setting, value in (("eval.sharpness", config.eval.sharpness), ("eval.noise_scales", config.eval.noise_scales)):
        if value:
            raise UserError(setting, "is asked for, but the loss gathers over ranks", "leave it out")
    if ranks > 1 and total % batch:
        at = f"are {total:,} in all: the last step has {total % batch}, which do not split evenly, and the loss gathers over ranks"
        fits = [str(n) for n in (total - total % batch, total - total % batch + batch) if n]
        raise UserError("schedule.samples", at, f"write {' or '.join(fits)} (in place of schedule.epochs)")
    rest = valid % (ranks * plan.micro_batch) if ranks > 1 else 0
    if rest and rest == valid:
        at = f"has {valid} validation rows, fewer than one pass of {plan.micro_batch} on each of {ranks} ranks"
        raise UserError("recipe.use", f"{at}, and the loss gathers over ranks", "give more, or None for data('valid')")
    text = f"the loss gathers over ranks: evaluations leave out the last {rest:,} of {valid:,} rows, which do not split evenly"
    return [text] if rest else []


@contextmanager
def no_collectives(recipe: Recipe, *, whole: bool) -> Iterator[None]:
    """Inside, a loss is computed. Raises UserError where it communicates between ranks unannounced.

    `whole`: the model lies whole on each rank, so that each collective is the recipe's; else the backend has collectives too.
    """
    if recipe.gathers:
        yield
        return
    before, begun = _collectives() if whole else 0, set[str]()  # a fake group for shapes alone counts nothing
    with nullcontext() if whole else watched_calls(begun):
        yield
    if begun or (whole and _collectives() != before):
        at = "loss() or the model communicates between ranks, which hang where one of them has fewer rows or none"
        raise UserError("recipe.use", at, "set `gathers = True` in the recipe: each pass then has equally many rows on every rank")


@contextmanager
def told_simulated(plan: Plan, notes: list[str]) -> Iterator[None]:
    """Inside, a recipe's code runs; `notes` gets a line where ranks are simulated and the code asks for others."""
    asked = set[str]()
    with watched_questions(asked) if plan.world_size != plan.processes else nullcontext():
        yield
    if asked:
        calls = " and ".join(f"{name}()" for name in sorted(asked))
        text = (
            f"the recipe calls {calls} of torch.distributed or accelerate, but simulated ranks run one after another in one process"
        )
        notes.append(f"{text} and cannot gather: a loss over all ranks' rows would differ from that on {plan.world_size} ranks")


def _collectives() -> int:
    """How many collectives this rank has begun, over all groups."""
    groups: list[Any] = list(c10d._world.pg_map) if dist.is_initialized() else []
    return sum(group._get_sequence_number_for_group() for group in groups)
