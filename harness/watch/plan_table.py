"""The plan as people read it: each number with its reason."""

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.config.errors import printable
from harness.plan.plan import Plan
from harness.plan.plan_warnings import SHOWN

_SHOWN = (
    "world_size", "nodes", "micro_batch", "accumulate", "global_batch", "global_batch_tokens", "reference_batch", "ratio", "rule",
    "reference_lr", "lr", "adamw_lr", "weight_decay", "momentum", "betas", "alpha", "eps", "ema", "warmup_samples", "warmup_steps",
    "total_samples", "total_tokens", "total_steps", "schedule", "noise_scale", "largest_stable_lr", "backend", "precision",
)  # fmt: skip


def show(value: object) -> str:
    """A number, list or mapping for a narrow column."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(show(v) for v in value)
    if isinstance(value, dict):
        return str(value["shape"])
    return f"{value:,}" if isinstance(value, int) else str(value)


def shown(text: str) -> str:
    """Foreign text, escaped for rich's markup: neither markup nor escape sequences in it affect the terminal."""
    return escape(printable(text))


def plan_table(plan: Plan) -> Table:
    """A table of name, value and reason; the warnings follow in `warning_lines`."""
    tree = plan.to_json()
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("plan", style="cyan", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name in _SHOWN:
        if tree[name] is not None:
            table.add_row(name, Text(printable(show(tree[name]))), Text(printable(plan.sources.get(name, ""))))
    if len(plan.stages) > 1:
        table.add_row("stages", Text(f"{len(plan.stages)}"), Text(printable(plan.sources["stages"])))
    for stage in plan.stages[1:]:
        why = f"from {stage.start:,} samples of the schedule, lr x {stage.lr:.4g} of its rate"
        table.add_row("global_batch", Text(f"{stage.batch:,}"), Text(why))
    return table


def warning_lines(plan: Plan, known: Collection[str] = ()) -> list[Text]:
    """The plan's most serious warnings, a line each; those whose code is `known` were shown before."""
    return [
        Text(printable(f"warning [{w.code}] {w.message}"), style="yellow") for w in plan.warnings[:SHOWN] if w.code not in known
    ]


def print_plan(plan: Plan, known: Collection[str] = ()) -> None:
    """Print the table and the warnings, except those in `known`, on standard output."""
    console = Console(soft_wrap=False, emoji=False)
    console.print(plan_table(plan))
    for line in warning_lines(plan, known):
        console.print(line, soft_wrap=True)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of numbers, right-aligned, on standard output; never folded, so that other programs can cut it too."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=max(sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)), 80)).print(table)
