"""`accelerate launch ... -m harness.tools.verify RUN.yaml`: N ranks train a few steps, and one process trains them again: the same?

The ranks run the real loop and engine. Rank 0 then runs reference.py, which shares none of that, and says what differs first.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from typing_extensions import override

from harness.analysis.equivalence import (
    LIMITS,
    TF32,
    Finding,
    Split,
    StepTrace,
    Trace,
    depends_on_micro,
    judge,
    repeats,
    samples,
    unseeded,
)
from harness.checkpoint.tensor_slices import SliceReader, TensorSlice
from harness.config.errors import UserError
from harness.config.flags import Parser, add_settings, parse
from harness.config.loader import load
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.distributed.process_group import gather, join, leave
from harness.engine.device import use_cpu
from harness.engine.factory import open_engine
from harness.engine.interface import Engine, Limit
from harness.plan.durations import needs_dataset
from harness.plan.plan import Plan, plan
from harness.plan.rank_env import settle
from harness.plan.world import ALONE, World
from harness.recipes.base import Recipe, load_recipe
from harness.recipes.contract import train_split
from harness.supervision.exit_codes import run_rank
from harness.supervision.output_redirect import echo, say
from harness.telemetry.events import Evaluated, Stepped, Windowed
from harness.telemetry.measurements import Reading
from harness.tools.reference import Oddity, Reference, digests, sketch
from harness.training.loop import train

STEPS = 6
"""Optimizer steps, the last of them short."""


@final
class Recorder(Engine):
    """An engine that writes down what it is given at each step, and the rates that its optimizer had."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.plan, self.device, self.dtype = inner.plan, inner.device, inner.dtype
        self.rank, self.processes, self.estimator, self.heartbeat = inner.rank, inner.processes, inner.estimator, inner.heartbeat
        self.notes, self.base, self.optimizer = inner.notes, inner.base, inner.optimizer
        self.rows: list[list[str]] = []
        self.used: list[list[float]] = []

    @property
    @override
    def model(self) -> nn.Module:
        return self._inner.model

    @override
    def adopt(self, plan: Plan) -> None:
        self.plan = plan
        self._inner.adopt(plan)

    @override
    def step(self, micros: Sequence[Micro], lr: float, stop: bool, *, close: bool = False, limit: Limit | None = None) -> None:
        self.rows.append([d for m in micros if not m.chunk.padding for d in digests(m.batch, m.chunk.count)])
        self.used.append([])
        self._inner.step(micros, lr, stop, close=close, limit=limit)

    def stepped(self, optimizer: Optimizer, args: Any, options: Any) -> None:
        """An optimizer is about to step."""
        if self.used:
            scales = [(float(g["lr"]), float(g.get("lr_scale", 1.0))) for g in optimizer.param_groups]
            self.used[-1] += [lr / scale for lr, scale in scales if scale]

    @override
    def begin(self) -> None:
        self._inner.begin()

    @override
    def stop_asked(self) -> bool:
        return self._inner.stop_asked()

    @override
    def parameters(self, *, trained: bool = False) -> int:
        return self._inner.parameters(trained=trained)

    @override
    def lr_scales(self) -> list[float]:
        return self._inner.lr_scales()

    @override
    def read(self, data_wait_s: float = 0.0, troubles: int = 0, *, save_due: bool = False, save_failed: bool = False) -> Reading:
        return self._inner.read(data_wait_s, troubles, save_due=save_due, save_failed=save_failed)

    @override
    def sync_buffers(self) -> None:
        self._inner.sync_buffers()

    @override
    def evaluated(self) -> AbstractContextManager[None]:
        return self._inner.evaluated()

    @override
    def averaged(self) -> AbstractContextManager[None]:
        return self._inner.averaged()

    @override
    def reduce(self, sums: Tensor) -> Tensor:
        return self._inner.reduce(sums)

    @override
    def any_rank(self, flag: bool) -> bool:
        return self._inner.any_rank(flag)

    @override
    def not_finite(self) -> str:
        return self._inner.not_finite()

    @override
    def pieces(self) -> list[TensorSlice]:
        return self._inner.pieces()

    @override
    def load(self, source: SliceReader) -> None:
        self._inner.load(source)


Opener = Callable[[Config, Plan, Recipe], Engine]


def verify(config: Config, world: World, *, cpu: bool, opener: Opener | None = None) -> list[Finding]:
    """Compare the ranks that are here with one process: what was found, on rank 0; nothing on the others. Raises UserError.

    `opener` makes the engine; None: the run file's backend.
    """
    config = replace(config, watch=replace(config.watch, layers=True, every_steps=1, noise_scale=False))
    recipe = load_recipe(config.recipe)
    if recipe.gathers:
        at = "its loss gathers over ranks, so one process cannot compute it"
        raise UserError("recipe.use", at, "compare the losses of two runs instead: --watch.against RUN")
    size = len(train_split(recipe, config.run.seed)) if needs_dataset(config) else None
    planned = shortened(plan(config, world, size))
    engine = opener(config, planned, recipe) if opener else open_engine(config, planned, recipe, cpu=cpu)
    ranks = _ranks(config, planned, Recorder(engine), cpu)
    device, rank = engine.device, engine.rank
    del engine
    if rank:
        return []
    one = Reference(config, planned, recipe, device)
    trace, second = one.run(planned.micro_batch, evaluate=True), one.run(planned.micro_batch)
    limits = TF32 if config.compute.tf32 and config.precision == "fp32" else LIMITS[config.precision]
    rates = [planned.lr_at(number * planned.global_batch) for number in range(len(trace.steps))]
    found = [unseeded(trace, second) or samples(ranks, trace, one.names)]
    found += judge(ranks, trace, rates, planned.processes, limits)
    found.append(repeats(trace, second))
    if planned.global_batch > 1:
        found.append(depends_on_micro(_split(one, planned), limits))
    return found


def shortened(planned: Plan) -> Plan:
    """The plan's first steps, and a short one: 3/5 of a batch, that no rank count divides."""
    batch = planned.global_batch
    total = min((STEPS - 1) * batch + max(batch * 3 // 5 - 1, 1), planned.total_samples)
    steps = -(-total // batch)
    return replace(planned, total_samples=total, total_steps=steps, eval_every_samples=None, checkpoint_every_samples=None)


def _ranks(config: Config, planned: Plan, recorder: Recorder, cpu: bool) -> Trace:
    """The trace of all ranks, gathered on each of them."""
    hook = register_optimizer_step_pre_hook(recorder.stepped)
    try:
        events = list(train(config, planned, cpu=cpu, engine=recorder))
    finally:
        hook.remove()
    steps = [e.metrics for e in events if isinstance(e, Stepped)]
    windows = [e.metrics for e in events if isinstance(e, Windowed)]
    rows, used = gather(recorder.rows), gather(recorder.used)
    traced = [
        _traced(step, window, [one[number] for one in rows], [one[number] for one in used])
        for number, (step, window) in enumerate(zip(steps, windows, strict=False))
    ]
    evaluated = [e.metrics for e in events if isinstance(e, Evaluated)]
    return Trace(traced, _sketches(recorder), {n: v for n, v in evaluated[-1].items() if v is not None} if evaluated else {})


def _sketches(engine: Engine) -> dict[str, list[float]]:
    """Sketches of the whole state, summed over ranks, by name."""
    found: dict[str, list[float]] = {}
    for part in gather(sketch(iter(engine.pieces()))):
        for name, numbers in part.items():
            found[name] = [a + b for a, b in zip(found.get(name, [0.0] * 3), numbers, strict=True)]
    return found


def _traced(step: Mapping[str, Any], window: Mapping[str, Any], rows: list[list[str]], used: list[list[float]]) -> StepTrace:
    """One step: its metrics and those of its window, and what each rank was given and used in it."""
    layers = {n[6:-10]: v for n, v in window.items() if n.startswith("train/layer_") and n.endswith("_grad_norm")}
    return StepTrace(
        rows=Counter(digest for one in rows for digest in one),
        samples=int(step["batch/samples"]),
        loss=step["train/loss"],
        items=step["batch/items"],
        grad_norm=step["train/grad_norm"],
        used=tuple(rate for one in used for rate in one),
        layers={name: value for name, value in layers.items() if value is not None and value == value},
    )


def _split(one: Reference, planned: Plan) -> Split:
    """Step 0 in passes of another size."""
    micro, whole = planned.micro_batch, planned.global_batch
    other = 2 * micro if 2 * micro <= whole else max(micro // 2, 1)
    first, second = (one.run(m, 1).steps[0] for m in (micro, other))
    calm = tuple(one.run(m, 1, Oddity(evaluating=True)).steps[0].loss for m in (micro, other))
    reseeded = one.run(micro, 1, Oddity(reseed=0x5EED)).steps[0]
    drawn = reseeded.rows != first.rows
    return Split(micro, other, (first, second), (calm[0], calm[1]), reseeded.loss, drawn, one.batch_norm())


def report(found: Sequence[Finding], what: str) -> str:
    """The findings as lines, and the verdict."""
    width = max(len(f.what) for f in found)
    lines = [f"{f.verdict if f.verdict != 'differs' else 'DIFFERS':<8} {f.what:<{width}}  {f.text}" for f in found]
    first = next((f for f in found if f.verdict == "differs"), None)
    end = f"the first difference: {first.what}" if first else "the ranks compute what one process computes"
    return "\n".join([what, *lines, end])


def main(argv: Sequence[str]) -> int:
    """One rank; its exit status: 0 the same, 1 not, 2 a mistake of the user. With --out the verdict goes there, and 0 is not 1."""
    parser = Parser(prog="python -m harness.tools.verify", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--out", type=Path, help="where the findings are written as JSON")
    add_settings(parser)
    here = ALONE
    try:
        here = settle(os.environ)
        args, settings = parse(parser, argv)
        config = load(args.run, settings)
        cpu = use_cpu(os.environ)
        join(cpu)
        found = verify(config, World(here.size, here.nodes, "cpu" if cpu else "gpu", here.size), cpu=cpu)
    except UserError as e:
        say(f"error: {f'rank {here.rank}: ' if here.rank else ''}{e}")
        return 2
    leave()
    if here.rank:
        return 0
    echo(report(found, f"{here.size} ranks of backend {config.backend.name} in {config.precision}, beside one process"))
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(f) for f in found], indent=1))
        return 0
    return int(any(f.verdict == "differs" for f in found))


if __name__ == "__main__":
    run_rank(main)
