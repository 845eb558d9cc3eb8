"""The run file: what a user wishes, in samples and epochs. Every field, with its meaning, is here and nowhere else.

Sections of the YAML are fields of `Config`; a flag `--batch.total 4096` sets the same field over the file.
Nothing here is derived: `harness.plan.plan` turns wishes into numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import float_info
from typing import Annotated, Any, Literal

from msgspec import Meta

EXCLUSIVE = (
    ("batch.per_gpu", "batch.total"),
    ("schedule.epochs", "schedule.samples"),
    ("scaling.warmup_epochs", "scaling.warmup_samples", "scaling.warmup_fraction"),
    ("eval.every_epochs", "eval.every_samples"),
    ("checkpoint.every_epochs", "checkpoint.every_samples", "checkpoint.every_minutes", "checkpoint.mtbf_hours"),
    ("eval.patience_epochs", "eval.patience_samples"),
    ("guard.recover_epochs", "guard.recover_samples"),
)
"""Settings of which one at most may be set. A flag replaces the run file's choice of the same group."""

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0, le=float_info.max)]
NonNegative = Annotated[float, Meta(ge=0, le=float_info.max)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]
Backend = Literal["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3"]
Knob = bool | int | float | str | None | list[bool | int | float | str]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """What is trained: model, data and loss. Any other key of this section is a knob of the recipe itself."""

    use: str = "digits"
    """A built-in recipe (digits, images, bytes_lm, causal_lm) or your own as `file.py:Class`, the path relative to the run file."""
    samples: Count | None = None
    """Size of the training set. Stated here, planning need not import the recipe; the worker checks it."""
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    """The recipe's own fields, written beside `use` in the run file and as --recipe.NAME on the command line."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The batch at which the recipe was tuned, and the batch wanted now."""

    reference: Count
    """Global batch, in samples per optimizer step, at which lr, weight decay, betas and warm-up were tuned."""
    per_gpu: Count | None = None
    """Samples per GPU per optimizer step: the global batch grows with the GPUs. Exclusive with batch.total."""
    total: Count | None = None
    """Global batch, the same on any number of GPUs. Exclusive with batch.per_gpu."""
    micro: Count | Literal["auto"] = "auto"
    """Most samples of one forward pass per GPU; accumulation follows. auto: the GPU's whole share in one pass."""
    last: Literal["keep", "drop"] = "keep"
    """The run's last, short batch: train on it with its true count, or drop it."""
    grow: Literal["none", "decay", "seesaw", "ramp", "noise"] = "none"
    """Change the batch during the run, by accumulation. decay: grow it where the schedule would lower the rate (Smith et al.
    2018). seesaw: half of each drop by the rate, the rest by the batch. ramp: from ramp_start up. noise: follow the noise scale."""
    most: Count | None = None
    """The largest global batch that `grow`, or a plateau, may reach. decay, seesaw, noise and plateau need it."""
    ramp_start: Count | None = None
    """grow ramp: the global batch at the start (GPT-3, Megatron-LM)."""
    ramp_increment: Count | None = None
    """grow ramp: by how many samples the batch grows at a time."""
    ramp_samples: Count | None = None
    """grow ramp: the length of the ramp in samples."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer as tuned at batch.reference. The plan rewrites these numbers for the batch wanted now."""

    name: str = "sgd"
    """Optimizer, by its name in torch.optim or pytorch_optimizer: sgd, adamw, lamb, ..."""
    lr: Positive
    """Learning rate tuned at batch.reference."""
    momentum: Below1 | None = None
    """Momentum of SGD-like optimizers. Unset: the optimizer's own default."""
    betas: tuple[Below1, Below1] | None = None
    """Decay rates of Adam-like optimizers per step at batch.reference. Unset: the optimizer's own default."""
    eps: Positive | None = None
    """Term added to Adam-like denominators. Unset: the optimizer's own default."""
    weight_decay: NonNegative = 0.0
    """Weight decay, applied to matrices and kernels only, not to norms and biases."""
    ema: Below1 | None = None
    """Decay of a running average of the weights per step at batch.reference, such as 0.999. Unset: no average is kept."""
    clip: Positive | None = None
    """Largest global gradient norm; the norm is of the mean loss over the global batch. Unset: no clipping."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """How the ratio k = global batch / batch.reference changes the recipe."""

    rule: str = "linear"
    """linear, sqrt, adam_sde, adam, legw, noise, surge, adascale, none, auto, or your own as `file.py:function` (of k)."""
    betas: Literal["keep", "sde", "half_life"] | None = None
    """Betas at ratio k: kept, 1-k(1-beta), or beta^k. Unset: as the rule says."""
    weight_decay: Literal["keep", "timescale"] | None = None
    """Weight decay at ratio k: kept, or scaled so that B/(lr wd) stays. Unset: as the rule says."""
    warmup_epochs: NonNegative | None = None
    """Length of the warm-up in epochs. Unset with the two below: 5 epochs where the rule raises lr, else none."""
    warmup_samples: Annotated[int, Meta(ge=0)] | None = None
    """Length of the warm-up in samples. Exclusive with the other two."""
    warmup_fraction: Below1 | None = None
    """Length of the warm-up as a share of the schedule. Exclusive with the other two."""
    warmup_from: Literal["reference", "zero"] = "reference"
    """Where the warm-up starts: at optim.lr, the rate that is known to be stable, or at zero."""
    noise_scale: Positive | None = None
    """Gradient noise scale in samples, measured. The rules noise and surge need it; every plan is checked against it."""
    largest_stable_lr: Positive | None = None
    """Largest lr that stayed stable at batch.reference, measured. Every plan that raises lr is checked against it."""
    evidence: str | None = None
    """Where these two were measured, shown with the plan. --from RUN fills in all three."""
    extend: bool = False
    """Rule noise: lengthen the schedule by the samples that the larger batch wastes, instead of only telling them."""
    budget_samples: Count | None = None
    """Rule adascale: the most samples the run may spend. Unset: k times the schedule, which is what a gain of 1 would take."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long to train and the shape of the learning rate. Lengths are in the unit of the schedule: epochs or samples."""

    epochs: Positive | None = None
    """Length in passes over the data. Exclusive with schedule.samples."""
    samples: Count | None = None
    """Length in samples. Exclusive with schedule.epochs."""
    shape: Literal["constant", "linear", "cosine", "step", "exponential", "plateau", "inverse_sqrt", "wsd"] = "constant"
    """Learning rate after the warm-up, as a factor of its peak."""
    milestones: tuple[Positive, ...] = ()
    """Shape step: where the rate is multiplied by gamma, in the schedule's unit, counted from the start."""
    gamma: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Shapes step, exponential, plateau: the factor of one drop."""
    every: Positive | None = None
    """Shape exponential: one factor gamma per this length. Shape plateau: patience, the length without improvement."""
    decay_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Shape wsd (warm-up, stable, decay): the share of the schedule that decays."""
    final_fraction: Fraction = 0.0
    """Shapes linear, cosine, wsd: the factor at the end. Shape plateau: the smallest factor."""
    on_plateau: Literal["lower_lr", "grow_batch"] = "lower_lr"
    """Shape plateau: multiply the rate by gamma, or the batch by 1/gamma while batch.most allows it."""


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """How the model lies on the devices. To change `name` changes nothing else about the run."""

    name: Backend = "ddp"
    """ddp: a whole copy per GPU. fsdp: all in shards over the GPUs (FSDP2). zero0..zero3: DeepSpeed, see README's table."""
    shard: Literal["world", "node"] = "world"
    """fsdp: shards over all GPUs, or over those of one node with a copy per node (HSDP)."""
    reshard: bool = True
    """fsdp: free each block's weights after its forward, gather them again in the backward. false: faster, more memory."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep in host memory: the optimizer's state and step (zero1 to zero3), or the weights too (zero3, fsdp on a GPU)."""
    nvme_path: str | None = None
    """zero3 with offload: a folder on a fast local disk, to keep the optimizer's state there and not in memory. Wants libaio."""
    bucket_mb: Count | None = None
    """Gradients that travel together, in MiB. Unset: 25 for ddp, 200 for ZeRO."""
    static_graph: bool = False
    """ddp: promise that every step uses the same parameters, so that DDP looks once."""
    compress: Literal["none", "bf16", "powersgd"] = "none"
    """ddp: gradients travel as bf16, or as low-rank factors (PowerSGD, lossy). For slow networks."""
    deepspeed: Mapping[str, Any] | None = None
    """zero0 to zero3: further keys of DeepSpeed's own JSON, or the path of a JSON file. Keys that the plan owns are refused."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a pass is computed: speed and memory, the same run."""

    compile: bool = False
    """torch.compile each block of the recipe, or the whole model where it names none. The first step tells what it took."""
    recompute: bool = False
    """Forget each block's activations and compute them again in the backward: less memory, about a third more time."""
    tf32: bool = False
    """Let NVIDIA GPUs round float32 products to TF32 (10 bits): much faster, not bit for bit float32."""
    channels_last: bool = False
    """Lay image weights out as NHWC, which convolutions on GPUs prefer."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When to evaluate. The end of the run is always evaluated."""

    every_epochs: Positive | None = None
    """Evaluate each time this many epochs have gone by. Exclusive with eval.every_samples."""
    every_samples: Count | None = None
    """Evaluate each time this many samples have gone by."""
    sharpness: Count | None = None
    """Measure sharpness too, the largest eigenvalue of the loss's Hessian, on so many training samples. Costs some 60 passes."""
    metric: str = "eval/loss"
    """What makes an evaluation the best so far, for the plateau rule and the patience: eval/loss or a metric of the recipe."""
    better: Literal["lower", "higher"] = "lower"
    """Which way eval.metric is better."""
    patience_epochs: Positive | None = None
    """Stop when eval.metric has not improved for this many epochs. Exclusive with eval.patience_samples."""
    patience_samples: Count | None = None
    """Stop when eval.metric has not improved for this many samples."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save. The end of the run, and a stop on request, are always saved."""

    every_epochs: Positive | None = None
    """Save each time this many epochs have gone by. Exclusive with the three below."""
    every_samples: Count | None = None
    """Save each time this many samples have gone by."""
    every_minutes: Positive | None = None
    """Save when this many minutes have gone by."""
    mtbf_hours: Positive | None = None
    """Mean time between failures: save every sqrt(2 x cost x mtbf), the cost as measured. Unset with the three above: 24."""
    dir: str | None = None
    """Where checkpoints lie: a path, or a URL that fsspec knows (s3://bucket/run). Unset: in the run folder."""
    keep: Count = 2
    """How many of the newest checkpoints stay."""
    keep_best: Annotated[int, Meta(ge=0)] = 0
    """How many of those with the best eval.metric stay besides. Above 0, an evaluation that is the best so far is saved at once."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when training is in trouble. A step that is not finite on any rank never moves a weight on any rank."""

    policy: Literal["watch", "protect"] = "watch"
    """watch: leave out steps that are not finite, and tell of all else. protect: clip spikes, back off from erratic updates, roll
    back a run that diverges or is dead. Each can be set by itself below."""
    nonfinite: Literal["skip", "back_off", "roll_back", "stop"] | None = None
    """After a loss or gradient that is not finite: go on with the next batch; besides, lower the rate; go back to the last good
    checkpoint; end the run. Unset: skip."""
    budget: Annotated[int, Meta(ge=0)] = 10
    """How many steps may be skipped as not finite before the run stops all the same."""
    bad_samples: Annotated[int, Meta(ge=0)] = 10
    """How many samples that cannot be read are left out, each named, before the run stops."""
    spike: Literal["note", "clip", "skip", "back_off", "roll_back", "stop"] | None = None
    """A loss or gradient norm far above the usual. clip, skip: gradients beyond what was usual in the last window are clipped to
    that, or their step is left out, before the weights move. Unset: by guard.policy, note or clip."""
    divergence: Literal["note", "back_off", "warm_up", "roll_back", "stop"] | None = None
    """The loss rises above its start, or gives up what it had won. warm_up: back to optim.lr, and climb again over twice the
    warm-up. Unset: by guard.policy, note or roll_back."""
    dead: Literal["note", "back_off", "roll_back", "stop"] | None = None
    """The loss stands at that of a model that has learnt nothing, or the weights stand still. Unset: by guard.policy."""
    erratic: Literal["note", "back_off", "roll_back", "stop"] | None = None
    """A step moves the weights by a large share of themselves, far more than usual. Unset: by guard.policy, note or back_off."""
    interventions: Annotated[int, Meta(ge=0)] = 8
    """How often the guard may lower the rate or roll back before the run stops."""
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """By what the guard multiplies the rate."""
    recover_epochs: Positive | None = None
    """The rate climbs back to the schedule's over so many epochs. Unset: it stays lowered. Exclusive with guard.recover_samples."""
    recover_samples: Count | None = None
    """The rate climbs back to the schedule's over so many samples."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are fetched by worker processes (recipe.workers), and what happens when one of them fails."""

    timeout_s: Positive = 120.0
    """Longest wait for a worker's next batch, or for a sample when a bad one is looked for, before the worker counts as hung."""
    restarts: Annotated[int, Meta(ge=0)] = 3
    """How many workers that died or hung are replaced before the run stops. The sample that did it is left out as a bad one."""


@dataclass(frozen=True, kw_only=True)
class RestartConfig:
    """What is done about ranks that die or hang. `widebatch launch` starts them again; other launchers end with an error."""

    budget: Annotated[int, Meta(ge=0)] = 3
    """Faults that are answered by starting all ranks again from the newest checkpoint, as long as that brings progress. 0: none."""
    hang_s: Positive = 60.0
    """Seconds, from the third step on, without a step or a batch of an evaluation, after which a rank hangs; or in a collective."""
    start_s: Positive = 600.0
    """The same for what may take longer: the start with the first steps, a checkpoint, the end."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Who is told what happens."""

    every_steps: Count = 10
    """Length of a logging window in optimizer steps. Values leave the device once per window."""
    noise_scale: bool = True
    """Measure the gradient noise scale, the batch past which a larger one is wasted."""
    layers: bool = False
    """Norms of weights, updates and gradients for each layer, and not only for each group of parameters."""
    peak_tflops: Positive | None = None
    """What one device can do at this precision, for mfu_pct. Unset: from a table of devices; none for one it does not know."""
    baseline: Positive | None = None
    """Samples per second that one device reached alone, for scaling_efficiency_pct."""
    wandb: Literal["off", "offline", "online"] = "offline"
    """Weights & Biases: off, a local run folder to sync later, or the service."""
    artifacts: bool = False
    """W&B: each checkpoint's manifest as an artifact that refers to where it lies."""
    trackers: tuple[str, ...] = ()
    """Further trackers, by Accelerate's names for them: tensorboard, trackio, mlflow, ..."""
    against: str | None = None
    """Run folder of a reference run: at the end, whether the rule held, by the losses at equal samples."""
    project: str = "widebatch"
    """Project in Weights & Biases."""
    use: tuple[str, ...] = ()
    """Your own watchers as `file.py:Class`: called without arguments, then with each event, on rank 0."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run itself."""

    dir: str | None = None
    """Run folder. One that holds checkpoints is resumed. Unset: runs/NAME-TIME, always new."""
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    """Seed of the initial weights, the sample order, augmentation and dropout."""
    stop_after_steps: Count | None = None
    """Save and stop after this many steps of this process, leaving the schedule as it is. For tests and debugging."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run file."""

    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    batch: BatchConfig
    optim: OptimConfig
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    schedule: ScheduleConfig
    backend: BackendConfig = field(default_factory=BackendConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """fp32; bf16 or fp16 autocast over float32 weights (fp16 with loss scaling, on a GPU only); fp64 to compare layouts."""
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    run: RunConfig = field(default_factory=RunConfig)
