"""widebatch sweep RUN.yaml: every batch under every rule with every seed, to the same samples; how far one may go, as text."""

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from harness.analysis.run_outcome import Outcome
from harness.analysis.sweep_results import Results, largest_held, row, table, to_json, verdict
from harness.analysis.target_metric import Target, direction, read_target
from harness.analysis.text_plot import Curve, Panel
from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.config.schema import Config
from harness.plan.plan import Plan, plan
from harness.supervision.output_redirect import echo
from launch.cluster.slurm_submit import add_slurm, check_slurm
from launch.lab.results import LabResults
from launch.lab.slurm_sweep import submit_trials
from launch.lab.trials import Trial, one_device, run_trials, trial, write
from launch.lab.wandb_sweep import check_places, wandb_sweep
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.options.run_argument import read_run
from launch.options.run_options import counts, dataset, run_parser

_RULE = re.compile(r"[\w./:-]+(\+[a-z_]+\.\w+=[^+,]+)*")
CURVE_POINTS = 33


@dataclass(frozen=True)
class Point:
    """One trial of the grid."""

    rule: str
    batch: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the point's folder."""
        return f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', self.rule)}-b{self.batch}-s{self.seed}"

    def settings(self) -> dict[str, str]:
        """What it lays over the run file: `linear+scaling.warmup_epochs=0` is a rule with a setting of its own."""
        name, *own = self.rule.split("+")
        given = dict(part.split("=", 1) for part in own)
        return {"scaling.rule": name, "batch.total": str(self.batch), "run.seed": str(self.seed), **given}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("sweep", COMMANDS["sweep"])
    _add_flags(parser)
    add_slurm(parser, arrays=False)
    add_settings(parser)
    args, settings, config = read_run(parser, argv)
    slurm = check_slurm(parser, args)
    out = args.out or Path("runs") / f"{args.run.stem}-sweep"
    grid = _grid(args, config)
    if args.wandb_sweep:
        return _print_wandb_sweep(args, settings, config, grid)
    samples = dataset(config)
    runs = {p: trial(args.run, settings | p.settings(), p.name, out) for p in grid}
    plans = {p: plan(one.config, one_device(), samples) for p, one in runs.items()}
    shared = _shared(runs, plans)
    trials = list({t.name: t for t in shared.values()}.values())
    write(trials)
    waiting = [t for t in trials if t.outcome() is None] if args.list or slurm else []
    if args.list:
        echo("\n".join(str(t.command) for t in waiting))
        return 0
    if slurm:
        return submit_trials(args, waiting, out)
    echo(f"{len(grid)} points, {len(trials)} runs of their own, in {out}")
    complete = _run(trials, args.jobs, args.chain)
    told = {p: found for p in grid if (found := shared[p].outcome()) is not None}
    if not complete:
        echo(f"stopped with {len(told)} of {len(grid)} points done; run the same command to resume")
        return 1
    results = _results(args, config, told)
    _finish(results, config, runs, out, " ".join(["widebatch sweep", *(shlex.quote(a) for a in argv)]))
    return 0


def _print_wandb_sweep(args: argparse.Namespace, settings: Mapping[str, str], config: Config, grid: Sequence[Point]) -> int:
    """For --wandb-sweep. Raises UserError."""
    metric = args.metric or (read_target(args.target).metric if args.target else "eval/loss")
    check_places(config)
    echo(wandb_sweep(args.run, settings, [p.settings() for p in grid], metric, args.target).rstrip())
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", required=True, metavar="A..B", help="global batches: 32..8192 by powers of two, or 32,48,64")
    rules = "rules of scaling.rule, and settings that go with one: none,linear,linear+scaling.warmup_epochs=0"
    parser.add_argument("--rules", default="none,linear,sqrt", help=rules)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds from run.seed on (default 3)")
    parser.add_argument("--target", help="also report the steps and samples needed to reach it, such as 'eval/accuracy_pct>=97'")
    parser.add_argument("--metric", help="what is compared at the end (default: the target's, or eval/loss)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; over the GPUs in turn where there are any")
    chain = "runs per process, one after the other, to save process starts for small runs (default 1)"
    parser.add_argument("--chain", type=int, default=1, help=chain)
    parser.add_argument(
        "--out", type=local_path("--out"), help="folder of the sweep (default runs/NAME-sweep); trials done there before are reused"
    )
    agents = "print the grid as a file for `wandb sweep`, whose agents start the runs; start nothing"
    parser.add_argument("--wandb-sweep", action="store_true", help=agents)
    parser.add_argument("--list", action="store_true", help="print the command of each run not done yet, start nothing")
    parser.add_argument("--gpus", type=counts, metavar="N", help="GPUs of each run in a Slurm job: 1, or 0 for the CPU")


def batches(text: str) -> list[int]:
    """The batches that --batches asks for. Raises UserError."""
    try:
        if ".." in text:
            low, high = (int(part) for part in text.split(".."))
            found = [low << n for n in range(64) if low << n <= high] if low > 0 else []
            if not found or found[-1] != high:
                raise UserError("--batches", f"{text}: {high} is not {low} doubled", "give A..B with B = A x 2^n, or a list")
        else:
            found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError("--batches", f"is {text!r}", "give 32..8192, or a list such as 32,128,512") from None
    if found[0] < 1:
        raise UserError("--batches", f"is {text!r}", "a batch is at least 1")
    return found


def _grid(args: argparse.Namespace, config: Config) -> list[Point]:
    rules = [part.strip() for part in args.rules.split(",")]
    for rule in rules:
        if not _RULE.fullmatch(rule):
            raise UserError("--rules", f"{rule!r} is not understood", "give names, or name+section.setting=value")
    for flag, value in (("--seeds", args.seeds), ("--jobs", args.jobs), ("--chain", args.chain)):
        if value < 1:
            raise UserError(flag, f"is {value}", "give at least 1")
    seeds = range(config.run.seed, config.run.seed + args.seeds)
    return [Point(rule, batch, seed) for batch in batches(args.batches) for rule in rules for seed in seeds]


def _shared(runs: Mapping[Point, Trial], plans: Mapping[Point, Plan]) -> dict[Point, Trial]:
    """The trial of each point: points whose every number is the same (all rules are, at the reference batch) share one."""
    first: dict[str, Trial] = {}
    return {p: first.setdefault(_numbers(one.config, plans[p]), one) for p, one in runs.items()}


def _numbers(config: Config, planned: Plan) -> str:
    """Everything that affects a run, as text: the plan without its reasons, the learning rate over the run, the rest of the run
    file."""
    rates = [planned.lr_at(planned.total_samples * n // CURVE_POINTS) for n in range(CURVE_POINTS)]
    bare = replace(planned, warnings=(), schedule=replace(planned.schedule, start=0.0, warmup=0), warmup_samples=0, warmup_steps=0)
    fixed = {k: v for k, v in bare.to_json().items() if k not in ("sources", "rule")}
    if planned.rule not in STATIC:
        fixed["rule"] = planned.rule
    rest = replace(config, scaling=replace(config.scaling, **_PLAIN), run=replace(config.run, dir=None))
    return json.dumps([fixed, [f"{rate:.9g}" for rate in rates], repr(rest)], default=str)


STATIC = ("none", "linear", "sqrt", "adam", "adam_sde", "legw", "noise", "surge")
"""Settings that have no effect beside the plan that is made of them."""
_PLAIN: dict[str, Any] = {
    "rule": "none", "betas": None, "weight_decay": None, "warmup_epochs": None, "warmup_samples": None, "warmup_fraction": None,
}  # fmt: skip


def _run(trials: Sequence[Trial], jobs: int, chain: int) -> bool:
    from harness.watch.progress import series

    done = sum(t.outcome() is not None for t in trials)
    with series("sweep", len(trials), done) as told:

        def line(one: Trial, o: Outcome) -> None:
            last = ", ".join(
                f"{k.removeprefix('eval/')} {v:.4g}" for k, v in (o.evaluations[-1].metrics if o.evaluations else {}).items()
            )
            told(f"{one.name}: {last if o.reason != 'guard' else f'stopped by the guard after {o.steps} steps'}")

        return run_trials(trials, jobs, line, chain)


def _results(args: argparse.Namespace, config: Config, told: Mapping[Point, Outcome]) -> Results:
    target = read_target(args.target) if args.target else None
    metric = args.metric or (target.metric if target else "eval/loss")
    known = sorted({name for o in told.values() for seen in o.evaluations for name in seen.metrics})
    if metric not in known and known:
        raise UserError("--metric", f"{metric} is not reported by this recipe", f"choose one of {', '.join(known)}")
    if target is None:
        target = Target(metric, direction(metric, "--metric"))
    elif metric != target.metric:
        raise UserError("--metric", f"is {metric}, but --target is by {target.metric}", "leave out --metric")
    rows = tuple(row(p.rule, p.batch, p.seed, o, target) for p, o in told.items())
    return Results(rows, config.batch.reference, target)


def _finish(results: Results, base: Config, runs: Mapping[Point, Trial], out: Path, command: str) -> None:
    """Print and write the table, the verdict, the plot, the record and the run file to use."""
    written, lines = LabResults(out, "sweep"), verdict(results)
    text = "\n".join([table(results), "", *lines])
    written.record(to_json(results, {"command": command}))
    echo("\n" + text)
    plotted = written.plot(panels(results))
    written.table(text + ("" if plotted.startswith("plot:") else f"\n\n{plotted}"))
    echo("\n" + plotted)
    chosen = choice(results)
    if chosen is None:
        echo("no run file: no rule holds at any batch")
        return
    rule, batch = chosen
    first = next(p for p in runs if (p.rule, p.batch) == (rule, batch))
    config = replace(runs[first].config, watch=base.watch, checkpoint=base.checkpoint)
    why = f"the largest batch that holds, by the sweep in {out}: {batch} with rule {rule}"
    written.run_file(config, why, note=f"  (batch {batch:,}, rule {rule})")


def choice(results: Results) -> tuple[str, int] | None:
    """(rule, batch) to use: the largest batch at which a rule holds, and of those rules the one with the best metric."""
    held = [(batch, rule) for rule in results.rules if (batch := largest_held(results, rule)) is not None]
    if not held:
        return None
    largest = max(batch for batch, _ in held)
    sign = 1 if results.target.higher else -1
    rule = max((r for b, r in held if b == largest), key=lambda r: sign * mean(results.cell(r, largest).values))
    return rule, largest


def panels(results: Results) -> list[Panel]:
    """The metric over the batch; with a target, the steps to it, with the fitted curve."""
    name, found = results.target.metric.removeprefix("eval/"), []
    curves = []
    for rule in results.rules:
        cells = [(b, results.cell(rule, b).values) for b in results.batches]
        points = [(float(b), mean(v), stdev(v) if len(v) > 1 else 0.0) for b, v in cells if v]
        curves.append(Curve(rule, tuple(points)))
    found.append(Panel(f"{name} at the end", "global batch (samples)", name, tuple(curves)))
    best = results.best()
    if best:
        steps = [(float(b), cell.steps, 0.0) for b, (_, cell) in best.items() if cell.steps is not None]
        lines = [Curve("best rule", tuple(steps))]
        fitted = results.fit()
        if fitted is not None:
            label = f"fit, critical batch {fitted.critical_batch:,.0f}"
            lines.append(Curve(label, tuple((float(b), fitted.steps(b), 0.0) for b in best), line=True))
        found.append(Panel(f"steps to {results.target}", "global batch (samples)", "steps", tuple(lines), log_y=True))
    return found
