"""widebatch branch RUN: continue a run from its checkpoint at larger batches; the largest that loses nothing is safe now."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import Any

from harness.plan.config import BatchConfig, CheckpointConfig, Config, EvalConfig, ScalingConfig, ScheduleConfig
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import Parser, add_settings, parse
from harness.plan.plan import Plan, plan
from harness.stats.branches import EPS, Branch, largest_safe, rows, smoothed
from harness.stats.figure import Curve, Panel
from harness.stats.sweep import aligned
from launch.commands import COMMANDS
from launch.trials import Trial, of_config, one_device, run_file, run_trials, write

_SAMPLES = re.compile(r"samples-(\d{12})")
STEPS = 50
"""Steps of the largest ratio in a branch, where --samples does not say."""
_OWN = ("shape", "gamma", "decay_fraction", "final_fraction")


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = Parser(prog="widebatch branch", description=COMMANDS["branch"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that a run wrote, with its checkpoints")
    parser.add_argument("--ratios", default="2,4,8", help="multiples of the run's global batch to try (default 2,4,8)")
    parser.add_argument("--samples", type=int, help=f"samples of each branch (default {STEPS} steps of the largest ratio)")
    parser.add_argument("--eps", type=float, default=EPS, help=f"how much higher the smoothed loss may be (default {EPS})")
    rule = "how the rate follows the ratio: sqrt (Merrill et al. 2025), or adam, linear, none"
    parser.add_argument("--rule", default="sqrt", help=rule)
    parser.add_argument("--jobs", type=int, default=1, help="branches at a time; over the GPUs in turn where there are any")
    parser.add_argument("--out", type=Path, help="folder of the test (default RUN-branch); what is done there is kept")
    add_settings(parser)
    args, settings = parse(parser, argv)
    run: Path = args.run if args.run.is_dir() else args.run.parent
    ratios = read_ratios(args.ratios)
    config, told, checkpoint = load(run / "run.yaml", settings), _plan_of(run), _newest(run)
    start = int(checkpoint.name.removeprefix("samples-"))
    samples = _length(args.samples, told, start, ratios)
    out: Path = args.out or run.with_name(f"{run.name}-branch")
    branches = {k: branch_config(config, told, start, k, args.rule) for k in ratios}
    trials = {k: _trial(b, k, samples // (k * told["global_batch"]), out) for k, b in branches.items()}
    plans = {k: plan(b, one_device(), told["dataset_samples"]) for k, b in branches.items()}
    write(list(trials.values()))
    for one in trials.values():
        _link(checkpoint, one.folder / "checkpoints" / checkpoint.name)
    if not _run(list(trials.values()), args.jobs):
        print("stopped; the same command goes on")
        return 1
    found = [_branch(k, trials[k], plans[k], start, start + samples) for k in ratios]
    return _finish(found, trials, args.eps, start, samples, out)


def read_ratios(text: str) -> list[int]:
    """1 and the ratios asked for, in order. Raises UserError."""
    try:
        found = sorted({1, *(int(part) for part in text.split(","))})
    except ValueError:
        found = [0]
    if found[0] < 1 or len(found) < 2:
        raise UserError("--ratios", f"is {text!r}", "give whole multiples such as 2,4,8")
    return found


def _plan_of(run: Path) -> dict[str, Any]:
    """The numbers the run stood under. Raises UserError."""
    try:
        told: dict[str, Any] = json.loads((run / "plan.json").read_text())
    except (OSError, ValueError) as e:
        raise UserError("RUN", f"{run} holds no plan.json ({e})", "give the folder that a run wrote") from e
    if len(told.get("stages") or [1]) > 1 or told["rule"] == "adascale":
        raise UserError(
            "RUN", f"{run} changes its batch or rate as it runs", "branch from a run with one batch and a fixed schedule"
        )
    return told


def _newest(run: Path) -> Path:
    found = sorted(p for p in (run / "checkpoints").glob("samples-*") if _SAMPLES.fullmatch(p.name))
    if not found:
        raise UserError("RUN", f"{run} holds no checkpoint", "let it run to its first one (checkpoint.every_samples)")
    return found[-1]


def _length(asked: int | None, told: Mapping[str, Any], start: int, ratios: Sequence[int]) -> int:
    """Samples of a branch: whole steps of every ratio. Raises UserError where the schedule has too few left."""
    largest = told["global_batch"] * ratios[-1]
    whole = told["global_batch"] * lcm(*ratios)
    wanted = asked if asked is not None else STEPS * largest
    left = told["total_samples"] - start
    if wanted > left:
        at = f"{wanted:,} samples are wanted, the schedule has {left:,} left after its checkpoint at {start:,}"
        raise UserError("--samples", at, "branch from an earlier checkpoint, or give fewer samples or smaller ratios")
    if wanted < 2 * whole:
        raise UserError("--samples", f"{wanted:,} is less than 2 steps of every branch", f"give at least {2 * whole:,}")
    return int(wanted // whole * whole)


def branch_config(config: Config, told: Mapping[str, Any], start: int, ratio: int, rule: str) -> Config:
    """The run as it stands, its numbers taken as tuned at its own batch, continued at `ratio` times that. Raises UserError."""
    if start < told["warmup_samples"]:
        at = f"its checkpoint at {start:,} samples is within the warm-up of {told['warmup_samples']:,}"
        raise UserError("RUN", at, "branch from a later one")
    batch, shape = told["global_batch"], told["schedule"]
    micro = config.batch.micro if isinstance(config.batch.micro, int) else told["micro_batch"]
    has = {name: told[name] for name in ("momentum", "eps") if told[name] is not None}
    betas = (told["betas"][0], told["betas"][1]) if told["betas"] is not None else None
    schedule = ScheduleConfig(
        samples=shape["horizon"],
        milestones=tuple(float(m) for m in shape["milestones"]),
        every=shape["every"] or None,
        **{name: shape[name] for name in _OWN},
    )
    return replace(
        config,
        batch=BatchConfig(reference=batch, total=batch * ratio, micro=micro),
        optim=replace(config.optim, lr=told["lr"], weight_decay=told["weight_decay"], betas=betas, **has),
        scaling=ScalingConfig(rule=rule, warmup_samples=told["warmup_samples"]),
        schedule=schedule,
        eval=EvalConfig(),
        checkpoint=CheckpointConfig(keep=1),
        watch=replace(config.watch, wandb="off"),
    )


def _trial(config: Config, ratio: int, steps: int, out: Path) -> Trial:
    return of_config(config, f"ratio-{ratio}", out, steps=steps)


def _link(source: Path, into: Path) -> None:
    """The checkpoint in a branch's folder, as hard links where the disk allows it: a checkpoint is never written to."""
    if into.parent.exists() and any(into.parent.iterdir()):
        return  # the branch has gone on from it already

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, into, copy_function=link)


def _run(trials: Sequence[Trial], jobs: int) -> bool:
    from harness.watch.progress import series

    with series("branch", len(trials), sum(t.outcome() is not None for t in trials)) as told:
        return run_trials(trials, jobs, lambda one, o: told(f"{one.name}: {o.reason} after {o.steps} steps"))


def _branch(ratio: int, one: Trial, planned: Plan, start: int, end: int) -> Branch:
    o = one.outcome()
    died = o is None or o.reason == "guard"
    loss = None if o is None or died else smoothed(o.losses, start, end)
    return Branch(ratio, planned.global_batch, planned.lr_at(start), loss)


def _finish(found: Sequence[Branch], trials: Mapping[int, Trial], eps: float, start: int, samples: int, out: Path) -> int:
    from harness.watch.plot import save

    print("\n" + aligned(rows(found, eps)))
    try:
        safe = largest_safe(found, eps)
    except ValueError as e:
        print(f"\n{e}: the run itself is in trouble")
        return 1
    record = {"from_samples": start, "samples": samples, "eps": eps, "branches": [vars(b) for b in found], "safe": safe.ratio}
    (out / "branch.json").write_text(json.dumps(record, indent=1) + "\n")
    most = ", the largest tried" if safe.ratio == max(b.ratio for b in found) else ""
    print(f"\nlargest safe batch at {start:,} samples: {safe.batch:,} (ratio {safe.ratio}{most}); its rate now {safe.lr:.4g}")
    points = tuple((float(b.batch), b.loss, 0.0) for b in found if b.loss is not None)
    curve = Curve("branches", points)
    print(save([Panel("loss of the branches", "global batch (samples)", "smoothed loss", (curve,))], out / "branch"))
    one = trials[safe.ratio]
    text = run_file(
        replace(one.config, run=replace(one.config.run, dir=str(one.folder))), f"goes on from the branch in {one.folder}"
    )
    (out / "run.yaml").write_text(text)
    print(f"run file: {out / 'run.yaml'}  (goes on where the branch ended)")
    return 0
