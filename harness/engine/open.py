"""The engine of a run, by `backend.name`. A backend is imported when it is asked for."""

from harness.engine.engine import Engine
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.plan import Plan


def open_engine(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """Model, optimizer and ranks, ready to step. Raises UserError where the backend cannot be had here."""
    if config.backend.name == "fsdp":
        from harness.engine.fsdp import FsdpEngine

        return FsdpEngine(config, plan, recipe, cpu=cpu)
    from harness.engine.ddp import DdpEngine

    return DdpEngine(config, plan, recipe, cpu=cpu)
