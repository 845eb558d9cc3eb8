"""The engine of a run, by `backend.name`. A backend is imported when it is asked for."""

from importlib import import_module

from harness.config.schema import Config
from harness.engine.interface import Engine
from harness.plan.backend_checks import ZERO
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


def open_engine(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """Model, optimizer and ranks, ready to step. Raises UserError if the backend cannot be had here."""
    match config.backend.name:
        case "ddp" if config.optim.second_moment == "chunks":
            from harness.engine.chunk_gradients import open_chunks

            return open_chunks(config, plan, recipe, cpu=cpu)
        case "ddp" if plan.processes == 1:
            from harness.engine.single_process import open_single_process

            return open_single_process(config, plan, recipe, cpu=cpu)
        case "ddp":
            from harness.engine.ddp import open_ddp

            return open_ddp(config, plan, recipe, cpu=cpu)
        case "fsdp":
            from harness.engine.fsdp import open_fsdp

            return open_fsdp(config, plan, recipe, cpu=cpu)
        case "zero0":
            from harness.engine.zero0 import open_zero0

            return open_zero0(config, plan, recipe, cpu=cpu)
        case _:
            from harness.engine.zero import open_zero

            return open_zero(config, plan, recipe, cpu=cpu)


def import_backend(name: str, *, cpu: bool) -> None:
    """Import what the engine of a backend consists of. Raises UserError if DeepSpeed cannot be imported."""
    import_module("harness.engine.zero" if name in ZERO else f"harness.engine.{name}")
    if name in ("zero0", *ZERO):
        from harness.engine.deepspeed import import_deepspeed

        import_deepspeed(cpu=cpu)
