"""The terminal: the plan, one live line, evaluations, and what ended the run. Plain lines where there is no terminal."""

import math
import time
from pathlib import Path
from shlex import quote
from typing import assert_never, final

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from harness.stats.events import Ended, Evaluated, Event, Metrics, Noticed, Saved, Shown, Started, Stepped, Windowed
from harness.stats.past import windows
from harness.stats.verdict import verdict
from harness.watch.table import plan_table

_TROUBLE = ("nonfinite", "spike", "divergence", "dead", "erratic", "back_off", "warm_up", "roll_back", "past_noise_scale")
LIVE_HZ = 4
"""How often a live line is drawn; a window that ends in between is not."""
PLAIN_LINES = 20
"""Progress lines of a whole run where there is no terminal."""


@final
class Terminal:
    """Tells events to a person. Colours follow NO_COLOR; a live line needs a terminal.

    `alone`: nobody else explains a failure; our launcher would.
    """

    def __init__(
        self, console: Console | None = None, *, show_plan: bool = True, against: Path | None = None, alone: bool = True
    ) -> None:
        self._against, self._folder, self._alone = against, "", alone
        self._notices: list[Noticed] = []
        self.console = console or Console()
        self._show_plan = show_plan
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total = 0
        self._told = -1
        self._newest: Windowed | None = None
        self._drawn_s = -math.inf
        self._told_already: frozenset[str] = frozenset()

    def __call__(self, event: Event) -> None:
        """Tell one event."""
        match event:
            case Started():
                self._start(event)
            case Stepped() | Shown():
                pass
            case Windowed():
                self._window(event)
            case Evaluated():
                best = "  [green]best[/green]" if event.best else ""
                self._say(f"eval   {event.samples:>12,} samples  {_metrics(event.metrics, 'eval/')}{best}")
            case Saved():
                times = f"{event.seconds:.2f} s, written in {event.write_s:.1f} s"
                self._say(f"[dim]saved  {event.samples:>12,} samples  {escape(event.path)} ({times})[/dim]")
            case Noticed() if event.code in self._told_already:
                pass
            case Noticed():
                self._notices.append(event)
                style = "cyan" if event.code == "resumed" else "yellow"
                self._say(f"[{style}]note   {event.samples:>12,} samples  \\[{event.code}] {escape(event.message)}[/{style}]")
            case Ended():
                self._end(event)
            case _:
                assert_never(event)

    def close(self) -> None:
        """Take the live line down."""
        if self._progress:
            self._draw()
            self._progress.stop()

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _start(self, event: Started) -> None:
        plan, self._folder = event.plan, event.folder
        if self._show_plan:
            self.console.print(plan_table(plan))
        else:
            self._told_already = frozenset(w.code for w in plan.warnings)
        where = f"{plan.processes} process{'es' if plan.processes > 1 else ''} on {event.device.partition(':')[0]}"
        played = f" playing {plan.world_size} ranks" if plan.processes != plan.world_size else ""
        self._say(f"\n{event.parameters:,} parameters, {where}{played}, run folder {escape(event.folder or 'none')}")
        self._total = plan.total_samples
        if self.console.is_terminal:
            columns = (
                TextColumn("train"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self.console, refresh_per_second=LIVE_HZ)
            self._task = self._progress.add_task("starting", total=plan.total_samples, completed=event.samples)
            self._progress.start()

    def _window(self, event: Windowed) -> None:
        if self._progress:
            self._newest, now = event, time.monotonic()
            if now - self._drawn_s >= 1 / LIVE_HZ:
                self._drawn_s = now
                self._draw()
            return
        part = event.samples * PLAIN_LINES // max(self._total, 1)
        if part > self._told:
            self._told = part
            self._say(f"train  {event.samples:>12,} samples  {_line(event)}")

    def _draw(self) -> None:
        """Bring the live line up to the newest window."""
        if self._progress and self._newest:
            self._progress.update(self._task, description=_line(self._newest), completed=self._newest.samples)

    def _end(self, event: Ended) -> None:
        self.close()
        best = _metrics(event.metrics, "best/")
        failed = event.reason in ("guard", "failed")
        style = "red" if failed else "bold"
        tail = f": {event.message}" if event.message else ""
        self._say(f"[{style}]{event.reason}[/{style}] after {event.step:,} steps, {event.samples:,} samples{escape(tail)}")
        if best:
            self._say(f"best   {best}   last   {_metrics(event.metrics, 'eval/')}")
        if self._against is not None:
            found = verdict(windows(Path(self._folder) / "events.jsonl"), windows(self._against))
            self._say(f"against {self._against.parent}: {found or 'no samples in common'}")
        if event.reason == "guard" or (failed and self._alone):
            self.console.print(self._failure(event))

    def _failure(self, event: Ended) -> Panel:
        """What happened, what was done, and how to go on."""
        bad = [n for n in self._notices if n.code in _TROUBLE]
        lines = [
            f"[bold]what[/bold]   {escape(event.message)}",
            f"[bold]where[/bold]  step {event.step:,}, {event.samples:,} samples",
            *(f"[bold]before[/bold] step {n.step:,} \\[{n.code}] {escape(n.message)}" for n in bad[-3:]),
            "[bold]done[/bold]   a step that is not finite moves no weight; the last checkpoint is as it was",
            f"[bold]go on[/bold]  widebatch train {escape(quote(f'{self._folder}/run.yaml'))}"
            + " --optim.lr LOWER" * (event.reason == "guard"),
        ]
        title = "the guard stopped the run" if event.reason == "guard" else "the run failed"
        return Panel("\n".join(lines), title=title, border_style="red")


def _line(event: Windowed) -> str:
    """A window in one line."""
    m = event.metrics
    return (
        f"step {event.step:,}  loss {m['train/loss']:.4f}  lr {m['train/lr']:.4g}  "
        f"grad {m['train/grad_norm']:.3g}  {_rate(m)}  epoch {m['progress/epoch']:.2f}"
    )


def _rate(m: Metrics) -> str:
    rate = m["throughput/samples_per_s"]
    return "first step" if rate is None else f"{rate:,.0f} samples/s"


def _metrics(metrics: Metrics, prefix: str) -> str:
    shown = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
    return "  ".join(f"{name} {_number(name, value)}" for name, value in shown.items())


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}%" if name.endswith("_pct") else f"{value:.4f}"
