"""`accelerate launch ... -m harness.verifying RUN.yaml`: N ranks train a few steps, and one process trains them again: the same?

The ranks run the real loop and engine. Rank 0 then runs harness.reference, which shares none of that, and says what differs first.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.engine.engine import Engine, Limit
from harness.engine.open import open_engine
from harness.engine.pieces import Piece, Source
from harness.engine.process import gather, join, leave, use_cpu
from harness.parts.data import Micro
from harness.parts.recipe import Recipe, load_recipe
from harness.plan.config import Config
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import Parser, add_settings, parse
from harness.plan.lengths import needs_dataset
from harness.plan.plan import Plan, plan
from harness.plan.world import World, place
from harness.reference import Oddity, Reference, digests, sketch
from harness.stats.events import Evaluated, Stepped, Windowed
from harness.stats.parity import LIMITS, TF32, Finding, Split, StepTrace, Trace, hangs_on_micro, judge, repeats
from harness.stats.rows import Reading
from harness.train import train

STEPS = 6
"""Optimizer steps, the last of them short."""


@final
class Recorder(Engine):
    """An engine that writes down what it is given at each step, and the rates that its optimizer had."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.plan, self.device, self.dtype = inner.plan, inner.device, inner.dtype
        self.rank, self.processes, self.estimator, self.pulse = inner.rank, inner.processes, inner.estimator, inner.pulse
        self.rows: list[list[str]] = []
        self.used: list[list[float]] = []

    @property
    def model(self) -> nn.Module:
        """See Engine.model."""
        return self._inner.model

    def adopt(self, plan: Plan) -> None:
        """See Engine.adopt."""
        self.plan = plan
        self._inner.adopt(plan)

    def step(self, micros: Sequence[Micro], lr: float, stop: bool, *, close: bool = False, limit: Limit | None = None) -> None:
        """See Engine.step."""
        self.rows.append([d for m in micros if not m.chunk.ghost for d in digests(m.batch, m.chunk.count)])
        self.used.append([])
        self._inner.step(micros, lr, stop, close=close, limit=limit)

    def stepped(self, optimizer: Optimizer, args: Any, options: Any) -> None:
        """An optimizer is about to step."""
        if self.used:
            self.used[-1] += [float(g["lr"]) / g.get("lr_scale", 1.0) for g in optimizer.param_groups]

    def begin(self) -> None:
        """See Engine.begin."""
        self._inner.begin()

    def parameters(self) -> int:
        """See Engine.parameters."""
        return self._inner.parameters()

    def lr_scales(self) -> list[float]:
        """See Engine.lr_scales."""
        return self._inner.lr_scales()

    def read(self, data_wait_s: float = 0.0, troubles: int = 0, *, save_due: bool = False, save_failed: bool = False) -> Reading:
        """See Engine.read."""
        return self._inner.read(data_wait_s, troubles, save_due=save_due, save_failed=save_failed)

    def sync_buffers(self) -> None:
        """See Engine.sync_buffers."""
        self._inner.sync_buffers()

    def averaged(self) -> AbstractContextManager[None]:
        """See Engine.averaged."""
        return self._inner.averaged()

    def reduce(self, sums: Tensor) -> Tensor:
        """See Engine.reduce."""
        return self._inner.reduce(sums)

    def any_rank(self, flag: bool) -> bool:
        """See Engine.any_rank."""
        return self._inner.any_rank(flag)

    def pieces(self) -> list[Piece]:
        """See Engine.pieces."""
        return self._inner.pieces()

    def load(self, source: Source) -> None:
        """See Engine.load."""
        self._inner.load(source)


Opener = Callable[[Config, Plan, Recipe], Engine]


def verify(config: Config, world: World, *, cpu: bool, opener: Opener | None = None) -> list[Finding]:
    """Compare the ranks that are here with one process: what was found, on rank 0; nothing on the others. Raises UserError.

    `opener` makes the engine; None: the run file's backend.
    """
    config = replace(config, watch=replace(config.watch, layers=True, every_steps=1, noise_scale=False))
    recipe = load_recipe(config.recipe)
    planned = shortened(plan(config, world, len(recipe.data("train")) if needs_dataset(config) else None))
    engine = opener(config, planned, recipe) if opener else open_engine(config, planned, recipe, cpu=cpu)
    ranks = _ranks(config, planned, Recorder(engine), cpu)
    device, rank = engine.device, engine.rank
    del engine
    if rank:
        return []
    one = Reference(config, planned, recipe, device)
    trace = one.run(planned.micro_batch, evaluate=not one.running())
    limits = TF32 if config.compute.tf32 and config.precision == "fp32" else LIMITS[config.precision]
    rates = [planned.lr_at(number * planned.global_batch) for number in range(len(trace.steps))]
    found = judge(ranks, trace, rates, one.names, planned.processes, limits)
    found.append(repeats(trace, one.run(planned.micro_batch)))
    if planned.global_batch > 1:
        found.append(hangs_on_micro(_split(one, planned), limits))
    return found


def shortened(planned: Plan) -> Plan:
    """The plan's first steps, and a short one: 3/5 of a batch, that no rank count divides."""
    batch = planned.global_batch
    total = min((STEPS - 1) * batch + max(batch * 3 // 5 - 1, 1), planned.total_samples)
    steps = -(-total // batch)
    return replace(planned, total_samples=total, total_steps=steps, eval_every_samples=None, checkpoint_every_samples=None)


def _ranks(config: Config, planned: Plan, recorder: Recorder, cpu: bool) -> Trace:
    """What all ranks did, on each of them."""
    hook = register_optimizer_step_pre_hook(recorder.stepped)
    try:
        events = list(train(config, planned, cpu=cpu, engine=recorder))
    finally:
        hook.remove()
    steps = [e for e in events if isinstance(e, Stepped)]
    windows = [e.metrics for e in events if isinstance(e, Windowed)]
    all_rows, all_used = gather(recorder.rows), gather(recorder.used)
    sketches: dict[str, list[float]] = {}
    for part in gather(sketch(iter(recorder.pieces()))):
        for name, numbers in part.items():
            sketches[name] = [a + b for a, b in zip(sketches.get(name, [0.0] * 3), numbers, strict=True)]
    traced = []
    for number, step in enumerate(steps):
        layers = {n[6:-10]: v for n, v in windows[number].items() if n.startswith("train/layer_") and n.endswith("_grad_norm")}
        traced.append(
            StepTrace(
                rows=Counter(d for rows in all_rows for d in rows[number]),
                samples=int(step.metrics["batch/samples"]),
                loss=step.metrics["train/loss"],
                items=step.metrics["batch/items"],
                grad_norm=step.metrics["train/grad_norm"],
                used=tuple(rate for used in all_used for rate in used[number]),
                layers={name: value for name, value in layers.items() if value is not None and value == value},
            )
        )
    evaluated = [e.metrics for e in events if isinstance(e, Evaluated)]
    return Trace(traced, sketches, {n: v for n, v in evaluated[-1].items() if v is not None} if evaluated else {})


def _split(one: Reference, planned: Plan) -> Split:
    """Step 0 in passes of another size."""
    micro, whole = planned.micro_batch, planned.global_batch
    other = 2 * micro if 2 * micro <= whole else max(micro // 2, 1)
    first, second = (one.run(m, 1).steps[0] for m in (micro, other))
    calm = tuple(one.run(m, 1, Oddity(evaluating=True)).steps[0].loss for m in (micro, other))
    reseeded = one.run(micro, 1, Oddity(reseed=0x5EED)).steps[0].loss
    return Split(micro, other, (first, second), (calm[0], calm[1]), reseeded, one.batch_norm())


def report(found: Sequence[Finding], what: str) -> str:
    """The findings as lines, and the verdict."""
    width = max(len(f.what) for f in found)
    lines = [f"{f.verdict if f.verdict != 'differs' else 'DIFFERS':<8} {f.what:<{width}}  {f.text}" for f in found]
    first = next((f for f in found if f.verdict == "differs"), None)
    end = f"the first difference: {first.what}" if first else "the ranks compute what one process computes"
    return "\n".join([what, *lines, end])


def main(argv: Sequence[str]) -> int:
    """One rank; its exit status: 0 the same, 1 not, 2 a mistake of the user. With --out the verdict goes there, and 0 is not 1."""
    parser = Parser(prog="python -m harness.verifying", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--out", type=Path, help="where the findings are written as JSON")
    add_settings(parser)
    here = place(os.environ)
    try:
        args, settings = parse(parser, argv)
        config = load(args.run, settings)
        cpu = use_cpu(os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"))
        join(cpu)
        found = verify(config, World(here.size, here.nodes, "cpu" if cpu else "gpu", here.size), cpu=cpu)
    except UserError as e:
        print(f"error: {f'rank {here.rank}: ' if here.rank else ''}{e}", file=sys.stderr)
        return 2
    finally:
        leave()
    if here.rank:
        return 0
    print(report(found, f"{here.size} ranks of backend {config.backend.name} in {config.precision}, beside one process"))
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(f) for f in found], indent=1))
        return 0
    return int(any(f.verdict == "differs" for f in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
