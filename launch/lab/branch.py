"""widebatch branch RUN: continue a run from its checkpoint at larger batches; the largest that loses nothing is safe now."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import Any

from harness.analysis.branch_test import EPS, Branch, largest_safe, rows, smoothed
from harness.analysis.sweep_results import aligned
from harness.analysis.text_plot import Curve, Panel
from harness.checkpoint.manifest import place_of
from harness.config.errors import UserError
from harness.config.flags import Parser, add_settings, parse
from harness.config.run_folder import RunFolder
from harness.config.schema import BatchConfig, CheckpointConfig, Config, EvalConfig, ScalingConfig, ScheduleConfig
from harness.plan.plan import Plan, plan
from harness.plan.schedule_checks import USES
from harness.supervision.output_redirect import echo, say
from harness.supervision.safe_files import make_inside, read_own, write_own
from launch.lab.results import LabResults
from launch.lab.told_plan import ToldPlan, told_plan
from launch.lab.trials import Trial, of_config, one_device, run_trials, write
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.options.run_argument import add_run_folder, read_run_folder
from launch.options.trust_option import CODE, STORE
from launch.processes.checkpoint_copy import copy, newest_good
from launch.processes.checkpoints import newest

STEPS = 50
"""How many steps the branch of the largest ratio takes, unless --samples is given."""
START = "checkpoint"
"""The file in a branch test's folder that names the checkpoint it began with."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch branch", description=COMMANDS["branch"], allow_abbrev=False)
    add_run_folder(parser)
    parser.add_argument("--ratios", default="2,4,8", help="multiples of the run's global batch to try (default 2,4,8)")
    parser.add_argument("--samples", type=int, help=f"samples of each branch (default {STEPS} steps of the largest ratio)")
    parser.add_argument("--eps", type=float, default=EPS, help=f"how much higher the smoothed loss may be (default {EPS})")
    rule = "how the rate follows the ratio: sqrt (Merrill et al. 2025), or adam, linear, none"
    parser.add_argument("--rule", default="sqrt", help=rule)
    parser.add_argument("--jobs", type=int, default=1, help="branches at a time; over the GPUs in turn where there are any")
    parser.add_argument(
        "--out", type=local_path("--out"), help="folder of the test (default RUN-branch); trials done there before are reused"
    )
    add_settings(parser)
    args, settings = parse(parser, argv)
    run: Path = args.run
    ratios = read_ratios(args.ratios)
    out: Path = args.out or run.with_name(f"{run.name}-branch")
    config = read_run_folder("branch", args, {*settings, STORE}, settings)
    before = read_run_folder("branch", args, CODE)
    told, (place, checkpoint) = _plan_of(run), _checkpoint(run, RunFolder(run).checkpoints(before), out)
    start, _ = place_of(checkpoint) or (0, 0)
    samples = _length(args.samples, told, start, ratios)
    branches = {k: branch_config(config, told, start, k, args.rule) for k in ratios}
    trials = {k: _trial(b, k, samples // (k * told["global_batch"]), out) for k, b in branches.items()}
    plans = {k: plan(b, one_device(), told["dataset_samples"]) for k, b in branches.items()}
    write(list(trials.values()))
    write_own(out / START, checkpoint)
    echo(f"branches go on from {checkpoint} in {place}")
    for one in trials.values():
        own = RunFolder(one.folder).checkpoints(one.config)
        if not newest(own):  # otherwise the branch has continued already
            make_inside(Path(own), "--out")
            copy(place, checkpoint, Path(own))
    if not _run(list(trials.values()), args.jobs):
        echo("stopped; run the same command to resume")
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


def _plan_of(run: Path) -> ToldPlan:
    """The plan that the run was trained with. Raises UserError."""
    told = told_plan(run)
    if len(told.get("stages") or [1]) > 1 or told["rule"] == "adascale":
        raise UserError(
            "RUN", f"{run} changes its batch or rate as it runs", "branch from a run with one batch and a fixed schedule"
        )
    return told


def _checkpoint(run: Path, place: str, out: Path) -> tuple[str, str]:
    """(`place`, where the run's checkpoints lie; the name of the one to continue from). Raises UserError.

    It is the newest that verifies, or the one that the test in `out` began with: its branches must have the same start.
    """
    begun = (read_own(out / START) or "").strip()
    if begun and place_of(begun):
        return place, begun
    name, damaged = newest_good(place)
    if damaged and not name:
        at = f"none of the {len(damaged)} checkpoints in {place} can be used ({damaged[0]})"
        raise UserError("RUN", at, "restore one, or branch from another run")
    if not name:
        raise UserError("RUN", f"{run} has no checkpoint at {place}", "let it run to its first one (checkpoint.every_samples)")
    for complaint in damaged:
        say(f"warn   not used: {complaint}")
    return place, name


def _length(asked: int | None, told: Mapping[str, Any], start: int, ratios: Sequence[int]) -> int:
    """Samples of a branch: whole steps of every ratio. Raises UserError if the schedule has too few left."""
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
    """The run file of a branch: the run's current numbers count as tuned at its own batch, and it continues at `ratio` times that.

    Raises UserError.
    """
    if start < told["warmup_samples"]:
        at = f"its checkpoint at {start:,} samples is within the warm-up of {told['warmup_samples']:,}"
        raise UserError("RUN", at, "branch from a later one")
    batch, shape = told["global_batch"], told["schedule"]
    micro = config.batch.micro if isinstance(config.batch.micro, int) else told["micro_batch"]
    has = {name: told[name] for name in ("momentum", "alpha", "eps", "adamw_lr") if told.get(name) is not None}
    betas = (told["betas"][0], told["betas"][1]) if told["betas"] is not None else None
    curve = {
        "milestones": tuple(float(m) for m in shape["milestones"]),
        "every": shape["every"] or None,
        "threshold": config.schedule.threshold,
        "on_plateau": config.schedule.on_plateau,
        **{name: shape[name] for name in ("gamma", "decay_fraction", "final_fraction")},
    }
    used = {name: value for name, value in curve.items() if name in USES[shape["shape"]]}
    schedule = ScheduleConfig(samples=shape["horizon"], shape=shape["shape"], **used)
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
    results = LabResults(out, "branch")
    echo("\n" + aligned(rows(found, eps)))
    try:
        safe = largest_safe(found, eps)
    except ValueError as e:
        echo(f"\n{e}: the run itself does not train well")
        return 1
    record = {"from_samples": start, "samples": samples, "eps": eps, "branches": [vars(b) for b in found], "safe": safe.ratio}
    results.record(record)
    most = ", the largest tried" if safe.ratio == max(b.ratio for b in found) else ""
    echo(f"\nlargest safe batch at {start:,} samples: {safe.batch:,} (ratio {safe.ratio}{most}); its rate now {safe.lr:.4g}")
    points = tuple((float(b.batch), b.loss, 0.0) for b in found if b.loss is not None)
    curve = Curve("branches", points)
    echo(results.plot([Panel("loss of the branches", "global batch (samples)", "smoothed loss", (curve,))]))
    one = trials[safe.ratio]
    why, note = f"resumes from the branch in {one.folder}", "  (resumes where the branch ended)"
    results.run_file(one.config, why, note=note, folder=one.folder)
    return 0
