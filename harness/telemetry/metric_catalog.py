"""Every metric a run tells: its name, how it is computed, over which ranks and which time. The README's table is made from this.

A name has one slash; its unit is its suffix (`_s`, `_ms`, `_pct`, `_gib`), else it is a plain number. A value that cannot be known
is null, never a guess; one that is not finite stays what it is.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`ranks`: all (summed or agreed), each (gathered), or rank 0. `time`: step, window, run, or an evaluation."""

    name: str
    how: str
    ranks: str
    time: str


def _group(prefix: str, *rows: tuple[str, str, str, str]) -> list[Metric]:
    return [Metric(f"{prefix}/{name}", how, ranks, time) for name, how, ranks, time in rows]


METRICS = [
    *_group(
        "progress",
        ("step", "optimizer steps, skipped ones included", "all", "run"),
        ("samples", "samples seen; the x-axis of everything", "all", "run"),
        (
            "samples_trained",
            "samples trained on, those that a roll-back or a restart discarded included: never decreases",
            "all",
            "run",
        ),
        ("tokens", "items the loss has counted, where they are tokens", "all", "run"),
        (
            "scheduled_samples",
            "position in the schedule, in samples: skipped steps do not count, and AdaScale's gain scales each step",
            "all",
            "run",
        ),
        ("epoch", "samples / size of the data", "all", "run"),
        ("train_s", "training time: wall time without the pauses named in pause/", "rank 0", "this process"),
        ("trained_s", "training time of all processes of the run, without what a restart discarded", "rank 0", "run"),
        ("wall_s", "wall time, monotonic clock", "rank 0", "this process"),
    ),
    *_group(
        "pause",
        (
            "start_s",
            "from the recipe's data to the first step: building the model, joining the ranks, loading a checkpoint",
            "rank 0",
            "this process",
        ),
        ("first_step_s", "the first step, with warm-up and compilation", "rank 0", "this process"),
        ("eval_s", "evaluations", "rank 0", "this process"),
        ("checkpoint_s", "checkpoints", "rank 0", "this process"),
        ("count_flops_s", "counting operations on shapes", "rank 0", "this process"),
        ("source_losses_s", "data/SOURCE_loss", "rank 0", "this process"),
        ("recovery_s", "ranks that were lost: until the others could train again", "rank 0", "this process"),
    ),
    *_group(
        "train",
        ("loss", "sum of losses / number of items, over the steps whose loss is finite", "all", "window"),
        ("loss_max_rank", "the largest of the ranks' own mean losses", "each", "window"),
        ("lr", "learning rate of the last step", "all", "step"),
        ("grad_norm", "global gradient norm of the mean loss before clipping, mean over the finite steps", "all", "window"),
        ("clip_fraction", "share of steps whose gradient was clipped", "all", "window"),
        ("param_norm", "norm of all weights", "all", "last step"),
        (
            "update_to_param_ratio",
            "norm of the update / norm of the weights, over about 8,192 elements of a tensor and rank",
            "all",
            "last step",
        ),
        ("group0_lr", "learning rate of a parameter group, or of a layer with watch.layers", "all", "last step"),
        ("group0_param_norm", "norm of the group's weights", "all", "last step"),
        ("group0_update_to_param_ratio", "norm of the group's update / norm of its weights", "all", "last step"),
        ("group0_grad_norm", "gradient norm of the group before clipping; null on zero1 to zero3", "all", "last step"),
    ),
    *_group(
        "eval",
        ("loss", "sum over the validation split / number of items, each sample once", "all", "evaluation"),
        ("accuracy_pct", "and whatever else the recipe's metrics() gives", "all", "evaluation"),
        (
            "NAME/loss",
            "eval/loss and others for each set, where data('valid') gives several by name",
            "all",
            "evaluation",
        ),
        (
            "ema_loss",
            "eval/loss and others at the running average of the weights (optim.ema); ema_ before every name",
            "all",
            "evaluation",
        ),
        (
            "sharpness",
            "largest eigenvalue of the Hessian of the mean loss over eval.sharpness training samples",
            "all",
            "evaluation",
        ),
        (
            "noise_scale_samples",
            "gradient noise scale by chunks of eval.noise_scales training samples at the same weights (McCandlish et al. 2018)",
            "all",
            "evaluation",
        ),
        ("noise_scale_adam_samples", "the same of the gradient over sqrt(v), as Adam divides it", "all", "evaluation"),
        ("noise_scale_sign_samples", "the same in the l1 norm, as sign descent has it (arXiv 2602.03001)", "all", "evaluation"),
        ("noise_scale_muon_samples", "the same in the nuclear norm of Muon's matrices (arXiv 2602.03001)", "all", "evaluation"),
        ("generalization_gap", "eval/loss - training loss over as many samples just before", "all", "evaluation"),
    ),
    *_group(
        "batch",
        ("global_samples", "samples per optimizer step", "all", "run"),
        ("micro_samples", "samples of one forward pass", "all", "run"),
        ("accumulate", "passes per step and rank", "all", "run"),
        ("world_size", "data-parallel ranks", "all", "run"),
        ("ratio", "k = global batch / reference batch", "all", "run"),
        (
            "noise_scale_samples",
            "gradient noise scale (McCandlish et al. 2018), means over about 100 measured steps; by passes or ranks",
            "all",
            "run",
        ),
        (
            "noise_scale_moments_samples",
            "noise scale estimated from the optimizer's first moment; may be many times too high",
            "all",
            "run",
        ),
        (
            "noise_scale_estimator",
            "passes, ranks, moments or none: text, in the journal's start line and W&B's summary",
            "all",
            "run",
        ),
        ("critical_ratio", "global batch / noise scale (by passes or ranks); past 1 a larger batch is mostly wasted", "all", "run"),
        ("scaling_gain", "AdaScale's gain r at this k: reference steps that one step is worth", "all", "run"),
    ),
    *_group(
        "data",
        ("SOURCE_samples", "samples of the stream so far that are of this source of a mixture", "all", "run"),
        ("SOURCE_epoch", "data/SOURCE_samples / size of the source", "all", "run"),
        (
            "SOURCE_loss",
            "with watch.loss_by_source: loss of the source's samples in the next step, in eval mode; null where it has none there",
            "all",
            "next step",
        ),
    ),
    *_group(
        "throughput",
        ("samples_per_s", "real samples / training time", "all", "window"),
        ("samples_per_s_per_device", "the same per device", "all", "window"),
        ("tokens_per_s", "counted tokens / training time", "all", "window"),
        ("tokens_per_s_per_device", "the same per device", "all", "window"),
        ("step_p50_ms", "median time of a step, by the device's clock", "rank 0", "window"),
        ("step_p95_ms", "95th percentile of the same", "rank 0", "window"),
        ("data_wait_pct", "share of the time that the host waited for data", "slowest", "window"),
        (
            "comm_wait_pct",
            "share of the time between a rank's last gradient and everybody's; null on fsdp and zero",
            "mean",
            "window",
        ),
        ("host_sync_count", "host-device synchronisations (on a CPU: those that a GPU would have)", "rank 0", "window"),
        ("tflops_per_device", "operations counted on shapes, or the recipe's own count, / time", "all", "window"),
        ("mfu_pct", "tflops_per_device / peak of the device; null where the peak is not known", "all", "window"),
        ("scaling_efficiency_pct", "samples_per_s_per_device / watch.baseline; null without a baseline", "all", "window"),
        ("padding_pct", "share of computed items that the loss does not count", "all", "window"),
    ),
    *_group(
        "memory",
        ("gpu_peak_allocated_gib", "largest over ranks; 0 on a CPU", "largest", "window"),
        ("gpu_peak_reserved_gib", "largest memory reserved by torch's allocator over ranks; 0 on a CPU", "largest", "window"),
        ("alloc_retries", "times torch's allocator had to free its cache", "sum", "this process"),
        ("ooms", "out-of-memory errors of torch's allocator", "sum", "this process"),
        ("host_rss_gib", "resident memory of a process (host)", "largest", "window"),
    ),
    *_group(
        "system",
        ("cpu_pct", "CPU time used, of all CPUs; sampled every 2 s, as all of system/", "mean of nodes", "newest sample"),
        ("memory_pct", "memory in use", "fullest node", "newest sample"),
        ("network_sent_mib_per_s", "bytes sent by all interfaces but loopback", "sum of nodes", "newest sample"),
        ("network_received_mib_per_s", "bytes received by the same", "sum of nodes", "newest sample"),
        ("gpu_utilization_pct", "share of the time in which a kernel ran, by NVML", "mean of GPUs", "newest sample"),
        ("gpu_memory_gib", "memory in use on a GPU, of other processes too, by NVML", "fullest GPU", "newest sample"),
        ("gpu_power_w", "power of the run's GPUs, by NVML", "sum of GPUs", "newest sample"),
        ("gpu_temperature_c", "temperature of a GPU, by NVML", "hottest GPU", "newest sample"),
        (
            "energy_j_per_sample",
            "gpu_power_w / samples_per_s; null where a GPU does not say its power",
            "sum of GPUs",
            "window",
        ),
    ),
    *_group(
        "stability",
        ("nonfinite_steps", "steps whose loss or gradient was not finite on some rank", "all", "run"),
        ("empty_steps", "steps in which the loss counted nothing on any rank: they move nothing, and are no fault", "all", "run"),
        ("skipped_steps", "steps that moved no weight; in fp16 also those that only found the loss scale too high", "all", "run"),
        (
            "spikes",
            "steps whose loss was a spike: over 10 robust deviations above the median of 128, and far beyond their largest",
            "all",
            "run",
        ),
        ("loss_z", "largest robust deviation of a loss in the window", "all", "window"),
        ("grad_norm_z", "largest robust deviation of the logarithm of a gradient norm in the window", "all", "window"),
        ("dead", "1 if the loss has stayed at the recipe's uniform loss for 50 steps", "all", "run"),
        ("rollbacks", "returns to a checkpoint that the guard ordered", "all", "run"),
        ("interventions", "times the guard lowered the rate or rolled back", "all", "run"),
        ("lr_factor", "what guard and plateau multiply the schedule's rate by", "all", "last step"),
        ("loss_scale", "fp16's loss scale, 1 in other precisions", "all", "last step"),
    ),
    *_group(
        "reliability",
        ("restarts", "times the run was started again", "rank 0", "run"),
        ("recoveries", "times ranks were lost and the others continued without a restart", "all", "run"),
        (
            "goodput_pct",
            "training time that counted / time since the run first began, restarts included; null where clocks do not agree",
            "rank 0",
            "run",
        ),
        ("lost_s", "training time that was lost when a restart or the guard went back to a checkpoint", "rank 0", "run"),
        ("rolled_back_s", "the part of lost_s that the guard rolled back", "rank 0", "run"),
        ("checkpoint_block_s", "seconds for which the last checkpoint stopped training", "rank 0", "checkpoint"),
        ("checkpoint_age_s", "training time since the last checkpoint", "rank 0", "run"),
        ("checkpoint_bytes", "size of the last checkpoint", "all", "checkpoint"),
        ("rank_skew_pct", "slowest rank's busy time above the mean of the others; null on fsdp and zero", "each", "window"),
        ("slowest_rank", "the rank that was busy longest; null on fsdp and zero", "each", "window"),
        ("bad_samples", "samples that could not be read and were left out", "all", "run"),
        ("log_points_dropped", "points that W&B did not take: it was too slow, or failed", "rank 0", "run"),
    ),
]


def markdown() -> str:
    """The table for the README."""
    lines = ["| metric | how it is computed | ranks | over |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| `{m.name}` | {m.how} | {m.ranks} | {m.time} |" for m in METRICS)])
