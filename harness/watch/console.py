"""The terminal: the plan, one live line, evaluations, and what ended the run. Plain lines where there is no terminal."""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import assert_never, final

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from harness.analysis.journal_tail import reports
from harness.analysis.loss_verdict import verdict
from harness.analysis.run_record import best_by
from harness.config.run_folder import RunFolder
from harness.plan.plan_warnings import SHOWN
from harness.supervision.held import HeldFolder
from harness.supervision.resume_command import after_renaming, resume_command
from harness.telemetry.events import Ended, Evaluated, Event, Histograms, Metrics, Noticed, Saved, Shown, Started, Stepped, Windowed
from harness.watch.plan_table import plan_table, shown

_TROUBLE = ("nonfinite", "spike", "divergence", "dead", "erratic", "back_off", "warm_up", "roll_back", "past_noise_scale")
LIVE_HZ = 4
"""Seconds between two redraws of the live line; windows that end in between are not shown."""
BAR = 16
"""Characters of the bar."""
PLAIN_LINES = 20
"""Progress lines of a whole run where there is no terminal."""


@final
class Terminal:
    """Shows events to a person. Colours follow NO_COLOR; a live line needs a terminal.

    `alone`: no launcher of ours explains a failure.
    """

    def __init__(
        self, console: Console | None = None, *, show_plan: bool = True, against: Path | None = None, alone: bool = True
    ) -> None:
        self._against, self._folder, self._alone = against, Path(), alone
        self._held: HeldFolder | None = None
        self._again, self._saved, self._best_by = "", False, ""
        self._notices: list[Noticed] = []
        self.console = console or Console(emoji=False)
        self._show_plan = show_plan
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total = self._room = 0
        self._told = -1
        self._newest: Windowed | None = None
        self._drawn_s = -math.inf
        self._told_already: frozenset[str] = frozenset()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started():
                self._start(event)
            case Stepped() | Shown() | Histograms():
                pass
            case Windowed():
                self._window(event)
            case Evaluated():
                best = "  [green]best[/green]" if event.best else ""
                self._say(f"eval   {event.samples:>12,} samples  {_metrics(event.metrics, 'eval/')}{best}")
            case Saved():
                self._saved = True
                times = f"{event.seconds:.2f} s, written in {event.write_s:.1f} s"
                self._say(f"[dim]saved  {event.samples:>12,} samples  {shown(event.path)} ({times})[/dim]")
            case Noticed() if event.code in self._told_already:
                pass
            case Noticed():
                self._notices.append(event)
                style = "cyan" if event.code == "resumed" else "yellow"
                self._say(f"[{style}]note   {event.samples:>12,} samples  \\[{event.code}] {shown(event.message)}[/{style}]")
            case Ended():
                self._end(event)
            case _:
                assert_never(event)

    def close(self) -> None:
        """Remove the live line, and release the run folder."""
        self._take_down()
        if self._held is not None:
            self._held.close()
            self._held = None

    def _take_down(self) -> None:
        """Remove the live line."""
        if self._progress:
            self._draw()
            self._progress.stop()

    def _say(self, text: str) -> None:
        """Print a line: wrapped between words on a terminal, otherwise unwrapped."""
        self.console.print(text, highlight=False, soft_wrap=not self.console.is_terminal)

    def _start(self, event: Started) -> None:
        plan, self._folder = event.plan, Path(event.folder)
        self._again, self._saved = resume_command(event.folder, plan, event.device), event.step > 0
        if event.folder:
            with suppress(OSError):
                self._held = HeldFolder(self._folder)
        self._best_by = best_by(event.config)
        if self._show_plan:
            self.console.print(plan_table(plan))
        else:
            self._told_already = frozenset(w.code for w in plan.warnings[:SHOWN])
        where = f"{plan.processes} process{'es' if plan.processes > 1 else ''} on {event.device.partition(':')[0]}"
        simulated = f" simulating {plan.world_size} ranks" if plan.processes != plan.world_size else ""
        some = f" ({event.trained:,} trained)" if event.trained not in (None, event.parameters) else ""
        self._say(f"\n{event.parameters:,} parameters{some}, {where}{simulated}, run folder {shown(event.folder or 'none')}")
        self._total = plan.total_samples
        if self.console.is_terminal:
            self._room = self.console.width - len("train ") - BAR - len(" 0:00:00 ")
            columns = (
                TextColumn("train"),
                BarColumn(bar_width=BAR),
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
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
            self._progress.update(self._task, description=_line(self._newest, self._room), completed=self._newest.samples)

    def _end(self, event: Ended) -> None:
        self._take_down()
        best = _metrics(event.metrics, "best/")
        failed = event.reason in ("guard", "failed", "unsaved")
        style = "red" if failed else "bold"
        tail = f": {event.message}" if event.message else ""
        self._say(f"[{style}]{event.reason}[/{style}] after {event.step:,} steps, {event.samples:,} samples{shown(tail)}")
        if best:
            self._say(f"best   by {shown(self._best_by.partition('/')[2])}: {best}   last   {_metrics(event.metrics, 'eval/')}")
        if self._against is not None:
            found = verdict(reports(RunFolder(self._now()).journal), reports(self._against))
            self._say(f"against {shown(str(self._against.parent))}: {found or 'no samples in common'}")
        if event.reason == "guard" or (event.reason == "failed" and self._alone):
            self.console.print(self._failure(event))

    def _now(self) -> Path:
        """Where the run folder is: it may have been renamed."""
        return self._folder if self._held is None else self._held.now

    def _failure(self, event: Ended) -> Panel:
        """What happened, what was done, and how to continue."""
        bad = [n for n in self._notices if n.code in _TROUBLE]
        again = after_renaming(self._again, self._folder, self._now())
        state = "the last checkpoint is unchanged" if self._saved else "no checkpoint was written: the run starts over"
        lines = [
            f"[bold]what[/bold]   {shown(event.message)}",
            f"[bold]where[/bold]  step {event.step:,}, {event.samples:,} samples",
            *(f"[bold]before[/bold] step {n.step:,} \\[{n.code}] {shown(n.message)}" for n in bad[-3:]),
            f"[bold]done[/bold]   a step that is not finite moves no weight; {state}",
            f"[bold]go on[/bold]  {shown(again)}" + " --optim.lr LOWER" * (event.reason == "guard"),
        ]
        title = "the guard stopped the run" if event.reason == "guard" else "the run failed"
        return Panel("\n".join(lines), title=title, border_style="red")


def _line(event: Windowed, room: int | None = None) -> str:
    """A window in one line of at most `room` characters: what does not fit is left out, the least important first."""
    m = event.metrics
    parts = {
        "step": f"step {event.step:,}",
        "loss": f"loss {m['train/loss']:.4f}",
        "lr": f"lr {m['train/lr']:.4g}",
        "grad": f"grad {m['train/grad_norm']:.3g}",
        "rate": _rate(m),
        "epoch": f"epoch {m['progress/epoch']:.2f}",
    }
    for least in ("epoch", "grad", "lr", "rate"):
        if room is None or len("  ".join(parts.values())) <= room:
            break
        del parts[least]
    return "  ".join(parts.values())


def _rate(m: Metrics) -> str:
    rate = m["throughput/samples_per_s"]
    return "first step" if rate is None else f"{rate:,.0f} samples/s"


def _metrics(metrics: Metrics, prefix: str) -> str:
    found = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
    return "  ".join(f"{shown(name)} {_number(name, value)}" for name, value in found.items())


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}%" if name.endswith("_pct") else f"{value:.4f}"
