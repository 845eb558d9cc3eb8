"""The engine of a run, by `backend.name`. A backend is imported when it is asked for."""

from harness.engine.engine import Engine
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.plan import Plan


def open_engine(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """Model, optimizer and ranks, ready to step. Raises UserError where the backend cannot be had here."""
    match config.backend.name:
        case "ddp" if plan.processes == 1:
            from harness.engine.solo import SoloEngine

            return SoloEngine(config, plan, recipe, cpu=cpu)
        case "ddp":
            from harness.engine.ddp import DdpEngine

            return DdpEngine(config, plan, recipe, cpu=cpu)
        case "fsdp":
            from harness.engine.fsdp import FsdpEngine

            return FsdpEngine(config, plan, recipe, cpu=cpu)
        case "zero0":
            from harness.engine.zero0 import Zero0Engine

            return Zero0Engine(config, plan, recipe, cpu=cpu)
        case _:
            from harness.engine.zero import ZeroEngine

            return ZeroEngine(config, plan, recipe, cpu=cpu)
