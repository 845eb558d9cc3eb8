"""`python -m harness.tools.script_probe OUT STEPS SCRIPT ARGS...`: runs anybody's training script and writes down what it did.

One process writes OUT/rank-N.json: for each optimizer step the gradient, the rate, the passes and their samples. It observes from
outside, by torch's hooks and by wrapping `Tensor.backward`, `Module.__call__` and the loss functions. The process ends within the
last step: what a script does behind its loop, also in a `finally`, may write the weights of a few steps over those of a real run.
"""

import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from harness.analysis.script_findings import PassSeen, StepSeen
from harness.data.batch_tree import leaves
from harness.tools.probe_libraries import watch_libraries

LOSSES = (
    "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "kl_div",
)  # fmt: skip
SKETCHES = 6


class DoneError(BaseException):
    """All steps that were asked for are seen: the script ends here."""


def _raise(seen: Sequence[StepSeen]) -> None:
    raise DoneError


@final
class Probe:
    """Observes one script. `install` before it runs, `remove` after. `over` ends it after so many steps."""

    def __init__(self, steps: int, over: Callable[[Sequence[StepSeen]], None]) -> None:
        self.steps: list[StepSeen] = []
        self._most, self._over = steps, over
        self._undo: list[Callable[[], None]] = []
        self._hooked: dict[int, int] = {}
        self._depth = self._epoch = 0
        self._own = [0.0] * SKETCHES
        self._mean: tuple[float, int] | None = None
        self._rows: list[str] = []
        self._passes: list[PassSeen] = []
        self._random, self._buffers, self._dropout = "", "", False
        self._inner: nn.Module | None = None

    def install(self) -> None:
        """Wrap the functions that a script calls."""
        self._undo.append(register_optimizer_step_pre_hook(self._stepped).remove)
        self._undo.append(watch_libraries(self._record))
        self._replace(Tensor, "backward", self._backward)
        self._replace(nn.Module, "__call__", self._call)
        self._replace(DataLoader, "__iter__", self._iter)
        for name in LOSSES:
            self._replace(functional, name, self._loss)

    def remove(self) -> None:
        """Remove the wrappers."""
        for undo in reversed(self._undo):
            undo()

    def _replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        before = getattr(owner, name)
        setattr(owner, name, wrap(before))
        self._undo.append(lambda: setattr(owner, name, before))

    def _iter(self, inner: Any) -> Any:
        def iterate(loader: Any) -> Any:
            if torch.is_grad_enabled():
                self._epoch += 1
            return inner(loader)

        return iterate

    def _call(self, inner: Any) -> Any:
        def call(module: nn.Module, *args: Any, **options: Any) -> Any:
            if module is self._inner:
                self._keep_buffers(module)
            if self._depth == 0 and torch.is_grad_enabled() and module.training and any(True for _ in module.parameters()):
                self._forward(module, [*args, *options.values()])
            self._depth += 1
            try:
                return inner(module, *args, **options)
            finally:
                self._depth -= 1

        return call

    def _forward(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """The outermost module is called in training mode. DDP broadcasts rank 0's buffers before it calls the inner module."""
        self._inner = module.module if isinstance(module, DistributedDataParallel) else None
        if self._inner is None:
            self._keep_buffers(module)
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in self._hooked:
                self._hooked[id(parameter)] = len(self._hooked)
                parameter.register_hook(self._grad_of(len(self._hooked) - 1))  # type: ignore[no-untyped-call]
        self._rows += _row_digests(inputs)
        if not self._random:
            self._random = xxhash.xxh3_64_hexdigest(torch.get_rng_state().numpy().tobytes())
            self._dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules())

    def _keep_buffers(self, module: nn.Module) -> None:
        """The buffers as the first pass of a step sees them."""
        if not self._buffers:
            self._buffers = xxhash.xxh3_64_hexdigest(b"".join(b.detach().cpu().numpy().tobytes() for b in module.buffers()))

    def _grad_of(self, number: int) -> Callable[[Tensor], None]:
        def add(grad: Tensor) -> None:
            for place, value in enumerate(_sketch(number, grad)):
                self._own[place] += value

        return add

    def _loss(self, inner: Any) -> Any:
        def loss(given: Tensor, target: Tensor, *args: Any, **options: Any) -> Any:
            found = inner(given, target, *args, **options)
            if torch.is_grad_enabled() and isinstance(found, Tensor) and found.requires_grad:
                ignored = options.get("ignore_index", -100)
                whole = target.is_floating_point()
                count = target.numel() if whole else int((target != ignored).sum())
                total = float(found.detach().sum())
                mean = total if found.ndim == 0 and options.get("reduction", "mean") == "mean" else total / max(count, 1)
                self._mean = (mean, count)
            return found

        return loss

    def _backward(self, inner: Any) -> Any:
        def backward(loss: Tensor, *args: Any, **options: Any) -> Any:
            factor = float(loss.detach()) / self._mean[0] if self._mean and self._mean[0] and loss.ndim == 0 else None
            self._passes.append(PassSeen(factor, self._mean[1] if self._mean else 0, tuple(self._rows)))
            self._rows, self._mean = [], None
            return inner(loss, *args, **options)

        return backward

    def _stepped(self, optimizer: Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """An optimizer is about to step, or will once its closure has run the passes, as in Lightning. Raises DoneError."""
        closure = options.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._look(optimizer)
            return None

        def closed() -> Any:
            loss = closure()
            self._look(optimizer)
            return loss

        return args[:1], options | {"closure": closed}

    def _look(self, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        self._record([p for group in groups for p in group["params"]], [float(group["lr"]) for group in groups], lambda p: p.grad)

    def _record(
        self, parameters: Sequence[nn.Parameter], rates: Sequence[float], grad_of: Callable[[nn.Parameter], Tensor | None]
    ) -> None:
        """The weights are about to move. A step is recorded once: DeepSpeed's optimizers step within its engine's step."""
        if not self._passes:
            return
        gradient, weights = [0.0] * SKETCHES, [0.0] * SKETCHES
        for parameter in parameters:
            number = self._hooked.get(id(parameter))
            if number is None:
                continue
            for held, tensor in ((gradient, grad_of(parameter)), (weights, parameter.detach())):
                for place, value in enumerate(_sketch(number, tensor) if tensor is not None else ()):
                    held[place] += value
        self.steps.append(
            StepSeen(
                epoch=self._epoch,
                rates=tuple(rates),
                gradient=tuple(gradient),
                own=tuple(self._own),
                weights=tuple(weights),
                buffers=self._buffers,
                random=self._random,
                dropout=self._dropout,
                passes=tuple(self._passes),
            )
        )
        self._own, self._passes, self._random, self._buffers = [0.0] * SKETCHES, [], "", ""
        if len(self.steps) == self._most:
            self._over(self.steps)


def _row_digests(inputs: Sequence[Any]) -> list[str]:
    """A hash of each row of the tensors among a model's inputs that have as many rows as the first."""
    tensors = [t for one in inputs for t in leaves(one) if isinstance(t, Tensor) and t.ndim]
    columns = [t.detach().cpu() for t in tensors if len(t) == len(tensors[0])]
    count = len(columns[0]) if columns else 0
    return [xxhash.xxh3_64_hexdigest(b"".join(t[i].numpy().tobytes() for t in columns)) for i in range(count)]


def _sketch(number: int, tensor: Tensor) -> list[float]:
    """Dot products of a tensor with fixed random vectors, the same for parameter `number` in every process."""
    flat = tensor.detach().reshape(-1).double().cpu()
    generator = torch.Generator().manual_seed(number)
    return [float(flat @ torch.randn(len(flat), generator=generator, dtype=torch.float64)) for _ in range(SKETCHES)]


def see(script: str, argv: Sequence[str], steps: int, over: Callable[[Sequence[StepSeen]], None] = _raise) -> list[StepSeen]:
    """Run a script for so many optimizer steps: what it did. Whatever it raises comes out. `over` may end the process."""
    probe, before = Probe(steps, over), sys.argv
    sys.argv = [script, *argv]
    sys.path.insert(0, str(Path(script).resolve().parent))
    probe.install()
    try:
        runpy.run_path(script, run_name="__main__")
    except DoneError:
        pass
    finally:
        probe.remove()
        sys.argv = before
        sys.path.pop(0)
    return probe.steps


def main(argv: Sequence[str]) -> None:
    """See the module; ends the process without waiting for what the script has begun."""
    out, steps, script, *rest = argv

    def end(seen: Sequence[StepSeen]) -> None:
        rank = os.environ.get("RANK", "0")
        (Path(out) / f"rank-{rank}.json").write_text(json.dumps([asdict(step) for step in seen]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    end(see(script, rest, int(steps), end))


if __name__ == "__main__":
    main(sys.argv[1:])
