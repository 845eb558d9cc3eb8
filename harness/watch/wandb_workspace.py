"""The W&B workspace that people watch, as code: sections of panels for what is asked of runs at several batches."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.config.errors import UserError

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as workspaces

X = "progress/samples"
BATCH, RULE, RANKS, LR = "plan.global_batch", "plan.rule", "plan.world_size", "plan.lr"
"""Keys of a run's config in W&B."""
HEAD = """**How to read it.** Runs are compared at equal samples. *Does the rule hold*: curves of runs at other batches should lie
on the reference's. *Batch against noise scale*: past the noise scale a larger batch is mostly wasted. *Stability*: tiles of 0 are
good; an lr factor below 1 means that the guard lowered the rate. Samples run back where the guard rolled back:
`progress/samples_trained` never does."""


@dataclass(frozen=True)
class Line:
    """Curves over `x`. `smooth` from 0 to 1; `by` groups runs by a key of their config; `pattern` takes all metrics that match."""

    title: str
    y: tuple[str, ...] = ()
    x: str = X
    log: bool = False
    smooth: float = 0.0
    by: str = ""
    pattern: str = ""


@dataclass(frozen=True)
class Tile:
    """A metric's newest value as a number."""

    title: str
    metric: str


@dataclass(frozen=True)
class Scatter:
    """A dot for each run: the last value of a metric over a number of its config."""

    title: str
    config: str
    metric: str


SECTIONS: dict[str, tuple[Line | Tile | Scatter, ...]] = {
    "Does the rule hold": (
        Line("Training loss", ("train/loss",), log=True, smooth=0.6),
        Line("Validation loss", ("eval/loss",), log=True),
        Line("Validation loss by batch", ("eval/loss",), log=True, by=BATCH),
        Line("Validation loss by rule", ("eval/loss",), log=True, by=RULE),
        Scatter("Validation loss against batch", BATCH, "eval/loss"),
        Line("Generalization gap", ("eval/generalization_gap",)),
        Line("Learning rate", ("train/lr",)),
        Line("Largest loss of a rank", ("train/loss_max_rank",), log=True, smooth=0.6),
    ),
    "Batch against noise scale": (
        Line(
            "Batch and noise scale, samples",
            ("batch/global_samples", "batch/noise_scale_samples", "batch/noise_scale_moments_samples"),
            log=True,
        ),
        Line("Batch / noise scale", ("batch/critical_ratio",)),
        Line("AdaScale's gain and k", ("batch/scaling_gain", "batch/ratio")),
    ),
    "Throughput": (
        Line("Samples a second and device", ("throughput/samples_per_s_per_device",)),
        Line("Samples a second", ("throughput/samples_per_s",)),
        Line("Tokens a second", ("throughput/tokens_per_s",)),
        Scatter("Samples a second and device against ranks", RANKS, "throughput/samples_per_s_per_device"),
        Scatter("Samples a second against batch", BATCH, "throughput/samples_per_s"),
        Line("Scaling efficiency, %", ("throughput/scaling_efficiency_pct",)),
        Line("Model FLOP utilisation, %", ("throughput/mfu_pct",)),
        Line("TFLOP/s a device", ("throughput/tflops_per_device",)),
        Line("Time of a step, ms", ("throughput/step_p50_ms", "throughput/step_p95_ms")),
        Line("Waiting for data and other ranks, %", ("throughput/data_wait_pct", "throughput/comm_wait_pct")),
    ),
    "Stability": (
        Tile("Steps that were not finite", "stability/nonfinite_steps"),
        Tile("Skipped steps", "stability/skipped_steps"),
        Tile("Spikes", "stability/spikes"),
        Tile("Roll-backs", "stability/rollbacks"),
        Tile("lr factor", "stability/lr_factor"),
        Tile("Loss scale (fp16)", "stability/loss_scale"),
        Line("Robust deviations of loss and gradient", ("stability/loss_z", "stability/grad_norm_z")),
        Line("Gradient norm before clipping", ("train/grad_norm",), log=True, smooth=0.6),
        Line("Update / weights", ("train/update_to_param_ratio",), log=True),
        Line("Share of clipped steps", ("train/clip_fraction",)),
    ),
    "Evaluation": (Line("Accuracies, %", pattern="eval/.*_pct"), Line("All evaluations", pattern="eval/.*")),
    "Over the clock": (
        Line("Training loss over seconds of training", ("train/loss",), x="progress/trained_s", log=True, smooth=0.6),
        Line("Validation loss over seconds of training", ("eval/loss",), x="progress/trained_s", log=True),
        Line("Training loss over all samples trained on", ("train/loss",), x="progress/samples_trained", log=True, smooth=0.6),
    ),
    "System": (
        Line("GPU utilisation, %", ("system/gpu_utilization_pct",)),
        Line("Power of the GPUs, W", ("system/gpu_power_w",)),
        Line("Energy of a sample, J", ("system/energy_j_per_sample",)),
        Line("Temperature of the hottest GPU, °C", ("system/gpu_temperature_c",)),
        Line("Memory of the fullest GPU, GiB", ("system/gpu_memory_gib",)),
        Line("CPU and memory of nodes, %", ("system/cpu_pct", "system/memory_pct")),
        Line("Network of all nodes, MiB a second", ("system/network_sent_mib_per_s", "system/network_received_mib_per_s")),
    ),
    "Reliability": (
        Line("Goodput, %", ("reliability/goodput_pct",)),
        Tile("Restarts", "reliability/restarts"),
        Line("Lost to restarts and roll-backs, s", ("reliability/lost_s", "reliability/rolled_back_s")),
        Line("Checkpoints: age and what they hold up, s", ("reliability/checkpoint_age_s", "reliability/checkpoint_block_s")),
        Line("Slowest rank above the others, %", ("reliability/rank_skew_pct",)),
        Line("Memory, GiB", ("memory/gpu_peak_allocated_gib", "memory/gpu_peak_reserved_gib", "memory/host_rss_gib")),
        Line("Points that W&B did not take", ("reliability/log_points_dropped",)),
    ),
}


def metrics_shown() -> set[str]:
    """Every metric that a panel names."""
    found = set[str]()
    for panel in (panel for panels in SECTIONS.values() for panel in panels):
        found |= {*panel.y, panel.x} if isinstance(panel, Line) else {panel.metric}
    return found


def workspace(entity: str, project: str) -> "workspaces.Workspace":
    """The workspace of a project, not saved yet. Raises UserError if wandb-workspaces is not installed."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as e:
        raise UserError("dashboard", f"needs wandb-workspaces ({e})", "pip install 'widebatch[dashboard]'") from e
    columns = [reports.ParallelCoordinatesPlotColumn(metric=reports.Config(key), log=True) for key in (BATCH, LR)]
    measured = ("batch/noise_scale_samples", "throughput/samples_per_s", "eval/loss")
    columns += [reports.ParallelCoordinatesPlotColumn(metric=reports.SummaryMetric(name), log=True) for name in measured]
    sections = [workspaces.Section(name="Read me", panels=[reports.MarkdownPanel(markdown=HEAD)], is_open=True)]
    sections += [
        workspaces.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True) for name, panels in SECTIONS.items()
    ]
    across = [reports.ParallelCoordinatesPlot(columns=columns, title="Batch, rate, noise scale, speed and loss")]
    sections.append(workspaces.Section(name="Runs beside each other", panels=[*across, reports.RunComparer(diff_only="split")]))
    return workspaces.Workspace(entity=entity, project=project, name="widebatch", sections=sections)


def _panel(panel: Line | Tile | Scatter) -> Any:
    import wandb_workspaces.reports.v2 as reports

    match panel:
        case Tile(title, metric):
            return reports.ScalarChart(title=title, metric=reports.Metric(metric))
        case Scatter(title, config, metric):
            return reports.ScatterPlot(title=title, x=reports.Config(config), y=reports.SummaryMetric(metric), log_x=True)
        case Line():
            return reports.LinePlot(
                title=panel.title,
                x=reports.Metric(panel.x),
                y=list(panel.y),
                log_y=panel.log or None,
                smoothing_factor=panel.smooth or None,
                smoothing_show_original=True if panel.smooth else None,
                ignore_outliers=True if panel.log else None,
                groupby=reports.Config(panel.by) if panel.by else None,
                metric_regex=panel.pattern or None,
            )


def as_json(space: "workspaces.Workspace") -> dict[str, Any]:
    """What would be saved, without saving it."""
    tree: dict[str, Any] = json.loads(space._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return tree


def save(space: "workspaces.Workspace") -> str:
    """Save it to the service that the environment names; its address."""
    space.save()
    return str(space.url)
