"""The same run on several worlds beside each other: what each does to the recipe, and what it costs, before anybody pays."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.plan import Plan, plan
from harness.plan.plan_warnings import SHOWN
from harness.plan.time_estimate import Hours, Speeds
from harness.plan.world import World
from harness.supervision.output_redirect import echo
from harness.watch.plan_table import print_rows

HEADER = ("GPUs", "micro", "accumulate", "global batch", "ratio", "lr", "warm-up steps", "steps", "hours", "GPU hours")


@dataclass(frozen=True)
class Row:
    """One world: its plan, or why there is none."""

    ranks: int
    plan: Plan | None
    hours: Hours | None
    problem: str


def add_bench(parser: argparse.ArgumentParser) -> None:
    """--bench."""
    what = "measured speeds (JSON of `widebatch bench`, or the folder of a run), to tell expected hours"
    parser.add_argument("--bench", metavar="FILE", type=Path, help=what)


def several(args: argparse.Namespace) -> bool:
    """Whether the flags ask for more than one world."""
    return args.gpus is not None and len(args.gpus) > 1


def compare(config: Config, args: argparse.Namespace, dataset: int | None, *, as_json: bool = False) -> int:
    """Print a row for each world that --gpus names. Raises UserError if no world can have the run."""
    speeds = _speeds(args.bench) if args.bench else None
    found = [row(config, ranks, args.nodes[1], dataset, speeds) for ranks in args.gpus]
    if not any(r.plan for r in found):
        raise UserError(
            "--gpus",
            f"none of {', '.join(map(str, args.gpus))} can be used for this run ({found[0].problem})",
            "give other numbers",
        )
    if as_json:
        echo(json.dumps({"plans": [_tree(r) for r in found]}, indent=1))
        return 0
    print_rows(HEADER if speeds else HEADER[:-2], [cells(r)[: None if speeds else -2] for r in found])
    for line in remarks(found):
        echo(line)
    return 0


def _speeds(bench: Path) -> Speeds:
    from harness.analysis.measured_speeds import speeds_from

    return speeds_from(bench)


def said_hours(bench: Path | None, planned: Plan) -> dict[str, float | bool]:
    """What --bench says of one plan, for JSON; nothing without it."""
    return asdict(_speeds(bench).hours(planned)) if bench else {}


def print_hours(bench: Path | None, planned: Plan) -> None:
    """Print what --bench says of one plan."""
    if bench:
        h = _speeds(bench).hours(planned)
        best = "at best (more ranks than were measured): " if h.at_best else ""
        echo(f"expected: {best}{h.hours:.3g} hours of training, {h.device_hours:.3g} GPU hours")


def row(config: Config, ranks: int, nodes: int, dataset: int | None, speeds: Speeds | None) -> Row:
    """The run on one world."""
    try:
        planned = plan(config, World(ranks, nodes), dataset)
    except UserError as e:
        return Row(ranks, None, None, str(e))
    return Row(ranks, planned, speeds.hours(planned) if speeds else None, "")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    p, h = row.plan, row.hours
    if p is None:
        return (f"{row.ranks:,}", *[""] * (len(HEADER) - 1))
    best = ">= " if h and h.at_best else ""
    return (
        f"{p.world_size:,}", f"{p.micro_batch:,}", f"{p.accumulate:,}", f"{p.global_batch:,}", f"{p.ratio:g}",
        f"{p.target_lr:.4g}", f"{p.warmup_steps:,}", f"{p.total_steps:,}",
        f"{best}{h.hours:.3g}" if h else "", f"{best}{h.device_hours:.3g}" if h else "",
    )  # fmt: skip


def remarks(rows: list[Row]) -> list[str]:
    """The warnings, each once with the worlds it applies to, and how certain the hours are."""
    said: dict[str, list[tuple[int, str]]] = {}
    for r in rows:
        for warning in r.plan.warnings[:SHOWN] if r.plan else ():
            said.setdefault(warning.code, []).append((r.ranks, warning.message))
    lines = [f"no plan for {r.ranks:,}: {r.problem}" for r in rows if r.plan is None]
    for code, where in said.items():
        (first, told), others = where[0], ", ".join(f"{n:,}" for n, _ in where[1:])
        lines.append(f"warning [{code}] {first:,} GPU{'s' * (first > 1)}: {told}" + (f" ({others} GPUs too)" if others else ""))
    if any(r.hours and r.hours.at_best for r in rows):
        lines.append(
            "hours marked >= are for more ranks than were measured and assume no loss of speed per GPU; evaluations come on top"
        )
    elif any(r.hours for r in rows):
        lines.append("hours are of training; evaluations and checkpoints come on top")
    else:
        lines.append("for hours, give measured speeds: --bench FILE")
    return lines


def _tree(row: Row) -> dict[str, object]:
    if row.plan is None:
        return {"world_size": row.ranks, "problem": row.problem}
    return row.plan.to_json() | (asdict(row.hours) if row.hours else {})
