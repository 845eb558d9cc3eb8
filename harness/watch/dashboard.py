"""The W&B workspace that people watch, as code: five sections of panels over samples."""

import json
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

X = "progress/samples"
SECTIONS: dict[str, list[tuple[str, ...]]] = {
    "Scaling": [
        ("batch/global_samples", "batch/noise_scale_samples"),
        ("batch/critical_ratio",),
        ("batch/scaling_gain", "batch/ratio"),
        ("throughput/scaling_efficiency_pct",),
    ],
    "Loss": [
        ("train/loss", "eval/loss"),
        ("train/loss_max_rank",),
        ("eval/accuracy_pct",),
        ("eval/generalization_gap",),
        ("train/lr",),
    ],
    "Throughput": [
        ("throughput/samples_per_s", "throughput/tokens_per_s"),
        ("throughput/step_p50_ms", "throughput/step_p95_ms"),
        ("throughput/data_wait_pct", "throughput/comm_wait_pct"),
        ("throughput/tflops_per_device",),
        ("throughput/mfu_pct",),
        ("memory/gpu_peak_allocated_gib", "memory/gpu_peak_reserved_gib", "memory/host_rss_gib"),
    ],
    "Stability": [
        ("train/grad_norm",),
        ("train/update_to_param_ratio",),
        ("stability/loss_z", "stability/grad_norm_z"),
        ("stability/nonfinite_steps", "stability/skipped_steps", "stability/spikes"),
        ("train/clip_fraction",),
    ],
    "Reliability": [
        ("reliability/goodput_pct",),
        ("reliability/restarts", "reliability/lost_s"),
        ("reliability/checkpoint_age_s", "reliability/checkpoint_block_s"),
        ("reliability/rank_skew_pct",),
        ("reliability/log_points_dropped",),
    ],
}
"""The panels of each section: the metrics that share one."""


def workspace(entity: str, project: str) -> workspaces.Workspace:
    """The workspace of a project, not saved yet."""
    sections = [
        workspaces.Section(
            name=name, panels=[reports.LinePlot(title=", ".join(y), x=reports.Metric(X), y=list(y)) for y in panels], is_open=True
        )
        for name, panels in SECTIONS.items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name="widebatch", sections=sections)


def as_json(space: workspaces.Workspace) -> dict[str, Any]:
    """What would be saved, without saving it."""
    tree: dict[str, Any] = json.loads(space._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return tree


def save(space: workspaces.Workspace) -> str:
    """Save it to the service that the environment names; its address."""
    space.save()
    return str(space.url)
