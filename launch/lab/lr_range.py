"""widebatch lr-range RUN.yaml: the largest stable learning rate at the reference batch, which is what scaling it up will eat."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis.lr_range import instability, next_factor, tail_loss
from harness.analysis.run_outcome import Outcome
from harness.analysis.sweep_results import aligned
from harness.analysis.text_plot import Curve, Panel
from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.config.run_folder import EVIDENCE
from harness.config.schema import BatchConfig, CheckpointConfig, Config, EvalConfig, GuardConfig, ScalingConfig, ScheduleConfig
from harness.plan.batch import nearest_multiples
from harness.plan.evidence import Evidence, to_json
from harness.plan.plan import plan
from harness.supervision.output_redirect import echo
from launch.lab.results import LabResults
from launch.lab.trials import Trial, of_config, one_device, run_trials, write
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.options.run_argument import read_run
from launch.options.run_options import dataset, run_parser

LEAST_STEPS, SHARE, WARMUP = 300, 0.2, 0.2
"""A trial takes this share of the schedule, at least so many steps, and warms up from zero over this share of itself."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("lr-range", COMMANDS["lr-range"])
    length = f"samples of a trial (default {SHARE:.0%}% of the schedule, at least {LEAST_STEPS} steps)"
    parser.add_argument("--samples", type=int, help=length)
    parser.add_argument(
        "--seeds", type=int, default=2, help="runs at each rate; it counts as stable if all of them are (default 2)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument(
        "--out",
        type=local_path("--out"),
        help="folder of the search (default runs/NAME-lr-range); trials done there before are reused",
    )
    add_settings(parser)
    args, _, config = read_run(parser, argv)
    for flag, value in (("--seeds", args.seeds), ("--jobs", args.jobs), ("--samples", args.samples or 1)):
        if value < 1:
            raise UserError(flag, f"is {value}", "give at least 1")
    out: Path = args.out or Path("runs") / f"{args.run.stem}-lr-range"
    samples = args.samples or trial_samples(config)
    found = search(config, samples, args.seeds, args.jobs, out)
    if found is None:
        echo("stopped; run the same command to resume")
        return 1
    return _finish(config, found, samples, out)


def trial_samples(config: Config) -> int:
    """How long a trial is."""
    whole = replace(config, batch=_reference(config), scaling=ScalingConfig(rule="none", warmup_samples=0))
    s = config.schedule
    length = ScheduleConfig(epochs=s.epochs, samples=s.samples, tokens=s.tokens, tokens_per_parameter=s.tokens_per_parameter)
    horizon = plan(replace(whole, schedule=length), one_device(), dataset(config))
    return max(round(SHARE * horizon.total_samples), LEAST_STEPS * config.batch.reference)


def _reference(config: Config) -> BatchConfig:
    micro, total = config.batch.micro, config.batch.reference
    if isinstance(micro, int) and micro < total and total % micro:
        raise UserError(
            "batch.micro", f"{micro} does not divide batch.reference {total}", f"near: {nearest_multiples(total, micro)}"
        )
    return BatchConfig(reference=total, total=total, micro=micro)


def trial_config(config: Config, factor: float, seed: int, samples: int) -> Config:
    """The run of `samples` samples at the reference batch and `factor` times the reference lr; the guard ends it at any trouble."""
    return replace(
        config,
        batch=_reference(config),
        optim=replace(config.optim, lr=config.optim.lr * factor),
        scaling=ScalingConfig(rule="none", warmup_samples=round(samples * WARMUP), warmup_from="zero"),
        schedule=ScheduleConfig(samples=samples),
        eval=EvalConfig(),
        checkpoint=CheckpointConfig(keep=1),
        guard=GuardConfig(nonfinite="stop", budget=0, divergence="stop", dead="stop"),
        watch=replace(config.watch, wandb="off"),
        run=replace(config.run, seed=seed),
    )


def search(config: Config, samples: int, seeds: int, jobs: int, out: Path) -> dict[float, list[Outcome]] | None:
    """Every rate that was tried, by its multiple of the reference; None if it was stopped before the end."""
    from harness.watch.progress import series

    found: dict[float, list[Outcome]] = {}
    with series("lr-range", 8) as told:
        while (factor := next_factor({f: not any(map(instability, o)) for f, o in found.items()})) is not None:
            trials = [_trial(config, factor, config.run.seed + n, samples, out) for n in range(seeds)]
            write(trials)
            if not run_trials(trials, jobs, lambda one, o: None):
                return None
            found[factor] = [o for t in trials if (o := t.outcome()) is not None]
            told(_line(config.optim.lr * factor, factor, found[factor]))
    return found


def _trial(config: Config, factor: float, seed: int, samples: int, out: Path) -> Trial:
    return of_config(trial_config(config, factor, seed, samples), f"lr-x{factor:.6g}-s{seed}", out)


def _line(lr: float, factor: float, outcomes: Sequence[Outcome]) -> str:
    problem = next((p for o in outcomes if (p := instability(o))), "")
    return f"lr {lr:.4g} (x{factor:.4g}): {f'unstable, {problem}' if problem else f'stable, loss {_loss(outcomes):.4g}'}"


def _loss(outcomes: Sequence[Outcome]) -> float:
    """Mean loss at the end over seeds; infinite if one has none."""
    found = [tail_loss(o) for o in outcomes]
    return sum(float("inf") if x is None else x for x in found) / len(found)


def _finish(config: Config, found: Mapping[float, Sequence[Outcome]], samples: int, out: Path) -> int:
    results, lr, batch = LabResults(out, "lr-range"), config.optim.lr, config.batch.reference
    held = {f: o for f, o in sorted(found.items()) if not any(map(instability, o))}
    echo("\n" + table(lr, found))
    if not held:
        echo(f"\nno rate tried is stable, not even {lr * min(found):.3g}: look at the recipe and its data")
        return 1
    largest, best = max(held), min(held, key=lambda f: _loss(held[f]))
    source = f"lr-range in {out}: {samples:,} samples at batch {batch}, warm-up over {WARMUP:.0%} of them"
    echo(
        f"\nlargest stable lr {lr * largest:.4g}, {largest:.3g} times optim.lr {lr:g}; lowest loss at {lr * best:.4g} (x{best:.3g})"
    )
    echo(words(largest, batch, config.optim.name))
    echo(results.plot(panels(lr, held)))
    evidence = Evidence(largest_stable_lr=lr * largest, batch=batch, optimizer=config.optim.name, source=source)
    results.record(to_json(evidence), EVIDENCE)
    use = replace(config, scaling=replace(config.scaling, largest_stable_lr=lr * largest, evidence=source))
    results.run_file(use, source, note=f"; any other: widebatch plan RUN.yaml --from {out}")
    return 0


def words(headroom: float, batch: int, optimizer: str) -> str:
    """A sentence on what the headroom means for the batch."""
    if headroom <= 1:
        return (
            "there is no headroom: optim.lr is the largest stable rate already, and a rule that raises it makes training unstable"
        )
    linear, root = int(headroom), int(headroom**2)
    return (
        f"so linear scaling stays stable up to about k = {linear:,} (batch {linear * batch:,}), sqrt up to about k = {root:,}; "
        f"a larger batch has less noise and may allow more ({optimizer}, measured at batch {batch:,})"
    )


def table(lr: float, found: Mapping[float, Sequence[Outcome]]) -> str:
    """A line for each rate."""
    rows = [["lr", "times", "loss at the end", ""]]
    for factor, outcomes in sorted(found.items()):
        problem = next((p for o in outcomes if (p := instability(o))), "")
        loss = "-" if problem else f"{_loss(outcomes):.4g}"
        rows.append([f"{lr * factor:.4g}", f"{factor:.4g}", loss, "unstable" if problem else "stable"])
    return aligned(rows)


def panels(lr: float, held: Mapping[float, Sequence[Outcome]]) -> list[Panel]:
    """Loss at the end over the rate."""
    points = tuple((lr * f, _loss(o), 0.0) for f, o in held.items())
    return [Panel("loss at the end of a trial", "learning rate", "training loss", (Curve("stable rates", points),))]
