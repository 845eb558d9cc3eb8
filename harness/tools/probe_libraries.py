"""What observing a script needs of libraries that own its loop, Lightning and DeepSpeed, where the script imports them."""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, final

from torch import Tensor, nn

from harness.engine.deepspeed_build import build_cpu_ops

Seen = Callable[[Sequence[nn.Parameter], Sequence[float], Callable[[nn.Parameter], Tensor | None]], None]
"""Called before an optimizer step with the parameters, the rates, and a function that gives a parameter's gradient."""


@final
class WhenImported(importlib.abc.MetaPathFinder):
    """Calls a function with a module when that is first imported: nothing is imported that the script does not use."""

    def __init__(self, wanted: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._wanted = dict(wanted)

    def find_spec(self, name: str, path: Any = None, target: Any = None, /) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        then = self._wanted.pop(name, None)
        if then is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            then(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def watch_libraries(stepping: Seen) -> Callable[[], None]:
    """Prepare Lightning and DeepSpeed as soon as they are imported; the returned function undoes it."""
    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        before = getattr(owner, name)
        setattr(owner, name, wrap(before))
        undo.append(lambda: setattr(owner, name, before))

    def lightning(module: ModuleType) -> None:
        replace(module.Trainer, "__init__", _on_these_ranks)

    def deepspeed(module: ModuleType) -> None:
        replace(module.DeepSpeedEngine, "step", lambda step: _stepping(step, stepping))

    def backend(module: ModuleType) -> None:
        replace(module.TorchBackend, "__init__", _built)

    def no_launcher(module: ModuleType) -> None:
        replace(module, "mpi_discovery", lambda _: _alone)

    wanted = {
        "lightning.pytorch.trainer.trainer": lightning,
        "pytorch_lightning.trainer.trainer": lightning,
        "deepspeed.runtime.engine": deepspeed,
        "deepspeed.comm.torch": backend,
        "deepspeed.comm.comm": no_launcher,
    }
    for name in [name for name in wanted if name in sys.modules]:
        wanted.pop(name)(sys.modules[name])
    finder = WhenImported(wanted)
    sys.meta_path.insert(0, finder)
    undo.append(lambda: sys.meta_path.remove(finder))

    def undone() -> None:
        for one in reversed(undo):
            one()

    return undone


def _on_these_ranks(init: Any) -> Any:
    """Lightning's Trainer takes its devices from its arguments and starts processes itself: here they run already, on the CPU."""

    def on_these_ranks(trainer: Any, *args: Any, **options: Any) -> None:
        here = {"accelerator": "cpu", "devices": int(os.environ.get("WORLD_SIZE", "1")), "num_nodes": 1}
        init(trainer, *args, **(options | here))

    return on_these_ranks


def _built(init: Any) -> Any:
    """Joining a group, DeepSpeed compiles what its CPU ranks need: all at once, if we did not build it before."""

    def built(backend: Any, *args: Any, **options: Any) -> None:
        build_cpu_ops()
        init(backend, *args, **options)

    return built


def _alone(*_: Any, **__: Any) -> None:
    """In place of looking for MPI where no launcher has given ranks: this is the one process."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def _stepping(step: Any, stepping: Seen) -> Any:
    """DeepSpeed's engine steps: its own optimizers hold flat copies, of which each rank may have a part."""

    def stepped(engine: Any, *args: Any, **options: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            from harness.engine.deepspeed import full_gradient

            rates = [float(group["lr"]) for group in engine.optimizer.param_groups]
            stepping(list(engine.module.parameters()), rates, full_gradient)
        return step(engine, *args, **options)

    return stepped
