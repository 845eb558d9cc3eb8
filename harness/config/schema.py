"""The run file: what a user asks for, in samples and epochs. Every field, with its meaning, is here and nowhere else.

Sections of the YAML are fields of `Config`; a flag `--batch.total 4096` sets the same field over the file.
Nothing here is derived: `harness.plan.plan` turns it into numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import float_info
from typing import Annotated, Any, Literal

from msgspec import Meta

from harness.config.amounts import MARK, PATTERN

EXCLUSIVE = (
    ("batch.per_gpu", "batch.total", "batch.total_tokens", "batch.steps"),
    ("reference.samples", "reference.tokens"),
    ("schedule.epochs", "schedule.samples", "schedule.tokens", "schedule.tokens_per_parameter"),
    ("scaling.warmup_epochs", "scaling.warmup_samples", "scaling.warmup_fraction"),
    ("eval.every_epochs", "eval.every_samples"),
    ("checkpoint.every_epochs", "checkpoint.every_samples", "checkpoint.every_minutes", "checkpoint.mtbf_hours"),
    ("eval.patience_epochs", "eval.patience_samples"),
    ("guard.recover_epochs", "guard.recover_samples"),
)
"""Settings of which one at most may be set. A flag replaces the run file's choice of the same group."""

Count = Annotated[int, Meta(ge=1)]
_WRITTEN: dict[str, Any] = {"pattern": PATTERN}
Amount = Annotated[int, Meta(ge=1, extra={MARK: True}, extra_json_schema=_WRITTEN)]
"""A count of at least 1 that may be written with k, M, B or T after it, such as 0.5M."""
AmountOrZero = Annotated[int, Meta(ge=0, extra={MARK: True}, extra_json_schema=_WRITTEN)]
"""As Amount, or 0."""
Positive = Annotated[float, Meta(gt=0, le=float_info.max)]
Length = Annotated[float, Meta(gt=0, le=float_info.max, extra={MARK: True}, extra_json_schema=_WRITTEN)]
"""A length in the unit of its section, written as Amount is."""
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
NonNegative = Annotated[float, Meta(ge=0, le=float_info.max)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]
Backend = Literal["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3"]
Knob = bool | int | float | str | None | list[bool | int | float | str]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """What is trained: model, data and loss. Any other key of this section is a knob of the recipe itself."""

    use: str = "digits"
    """A built-in recipe (digits, images, bytes_lm, causal_lm, chat, tokens) or your own: `file.py:Class`, relative to the run
    file, or `package.module:Class`, beside the run file or installed."""
    samples: Amount | None = None
    """Size of the training set. Stated here, planning need not import the recipe; the worker checks it."""
    sample_tokens: Count | None = None
    """Tokens of one sample, padding included, for lengths in tokens. Unset: `context` of the language models."""
    parameters: Amount | None = None
    """Size of the model as your scaling law counts it, with or without embeddings: for schedule.tokens_per_parameter."""
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    """The recipe's own fields, written beside `use` in the run file and as --recipe.NAME on the command line."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The batch at which the recipe was tuned, and the batch wanted now."""

    reference: Amount
    """Global batch, in samples per optimizer step, at which lr, weight decay, betas and warm-up were tuned."""
    per_gpu: Amount | None = None
    """Samples per GPU per optimizer step: the global batch grows with the GPUs. Exclusive with batch.total."""
    total: Amount | None = None
    """Global batch, the same on any number of GPUs. Exclusive with batch.per_gpu."""
    total_tokens: Amount | None = None
    """Global batch in tokens, such as 0.5M, rounded to whole samples of recipe.sample_tokens. In place of batch.total."""
    steps: tuple[tuple[int | str, int | str], ...] = ()
    """Global batches by position, such as [[0, 768], [250B tokens, 1536]]: from which sample (or token) of the schedule on, how
    many samples (or tokens). In place of batch.per_gpu, batch.total and batch.total_tokens."""
    stage_lr: Literal["rule", "keep"] | None = None
    """batch.steps and grow ramp: lr follows the batch by scaling.rule (rule), or stays (keep). Unset: rule for batch.steps, keep
    for a ramp."""
    micro: Count | Literal["auto"] = "auto"
    """Most samples of one forward pass per GPU; accumulation follows. auto: the GPU's whole share in one pass."""
    last: Literal["keep", "drop"] = "keep"
    """The run's last, short batch: train on it with its true count, or drop it."""
    grow: Literal["none", "decay", "seesaw", "ramp", "noise"] = "none"
    """Change the batch during the run, by accumulation. decay: grow it where the schedule would lower the rate (Smith et al.
    2018). seesaw: half of each drop by the rate, the rest by the batch. ramp: from ramp_start up. noise: follow the noise scale."""
    most: Amount | None = None
    """The largest global batch that `grow`, or a plateau, may reach. decay, seesaw, noise and plateau need it."""
    ramp_start: Amount | None = None
    """grow ramp: the global batch at the start (GPT-3, Megatron-LM)."""
    ramp_increment: Amount | None = None
    """grow ramp: by how many samples the batch grows at a time."""
    ramp_samples: Amount | None = None
    """grow ramp: the length of the ramp in samples."""


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The run in which the recipe was tuned, beside its batch; `batch.reference: {batch: 512, tokens: 10B}` sets it too."""

    samples: Amount | None = None
    """Length of the run that was tuned, in samples: lr, weight decay and eps are then rewritten for another length. Exclusive with
    reference.tokens."""
    tokens: Amount | None = None
    """Length of the run that was tuned, in tokens. Exclusive with reference.samples."""
    parameters: Amount | None = None
    """Size of the model that was tuned: the plan warns where recipe.parameters differs."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer as tuned at batch.reference. The plan rewrites these numbers for the batch wanted now."""

    name: str = "sgd"
    """Optimizer, by its name in torch.optim or pytorch_optimizer in small letters: sgd, adamw, lamb, ...; or your own class, as
    `file.py:Class`. One that the plan does not know (prodigy, your own) keeps its own defaults but for lr and weight_decay, wants a
    scaling.rule, and runs on ddp and zero0."""
    lr: Positive
    """Learning rate tuned at batch.reference."""
    lr_source: str | None = None
    """Where optim.lr is from, shown with the plan. `plan --from FIT` fills it in."""
    momentum: Below1 | None = None
    """Momentum of SGD-like optimizers. Unset: the optimizer's own default."""
    adamw_lr: Positive | None = None
    """Muon: learning rate, tuned at batch.reference, of the parameters that AdamW updates: embeddings, heads, norms, biases. Unset:
    optim.lr."""
    betas: tuple[Below1, Below1] | None = None
    """Decay rates of Adam-like optimizers per step at batch.reference. Unset: the optimizer's own default."""
    second_moment: Literal["step", "chunks"] = "step"
    """adam, adamw: what the second moment averages: the square of each step's gradient, or the mean of the squared gradients of its
    chunks of batch.micro samples, which does not depend on the global batch (Wang & Aitchison 2024). chunks: on ddp."""
    alpha: Below1 | None = None
    """Decay rate of RMSprop's squared gradients per step at batch.reference. Unset: the optimizer's own default."""
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

    rule: str = "auto"
    """auto (linear for SGD; sqrt for Adam, with weight decay by timescale, and for sign descent and Muon), linear, sqrt, adam_sde,
    adam, legw, noise, surge, adascale, none, or your own as `file.py:function` (of k)."""
    betas: Literal["keep", "sde", "half_life", "half_life_both"] | None = None
    """Betas at ratio k: kept; 1-k(1-beta); beta2^k, with beta1 kept; or beta^k for both. Of RMSprop: alpha as beta2. Unset: as the
    rule says."""
    weight_decay: Literal["keep", "timescale"] | None = None
    """Weight decay at ratio k: kept, or scaled so that B/(lr wd) stays, where it is decoupled. Unset: as the rule says."""
    warmup_epochs: NonNegative | None = None
    """Length of the warm-up in epochs. Unset, with warmup_samples and warmup_fraction: where the rule raises lr, 5 epochs or 10 %
    of the schedule, whichever is shorter; else none."""
    warmup_samples: AmountOrZero | None = None
    """Length of the warm-up in samples. Exclusive with warmup_epochs and warmup_fraction."""
    warmup_fraction: Below1 | None = None
    """Length of the warm-up as a share of the schedule. Exclusive with warmup_epochs and warmup_samples."""
    warmup_from: Literal["reference", "zero"] = "reference"
    """Where the warm-up starts: at optim.lr, the rate that is known to be stable, or at zero."""
    horizon_exponent: NonNegative | None = None
    """At a schedule of length D, lr is multiplied by (D0/D)^horizon_exponent, where D0 is the reference's length. Unset: 0.32 for
    Adam (Bjorck et al. 2024), 0 for others."""
    noise_scale: Positive | None = None
    """Gradient noise scale in samples, measured. The rules noise and surge need it; every plan is checked against it."""
    largest_stable_lr: Positive | None = None
    """Largest lr that stayed stable at batch.reference, measured. Every plan that raises lr is checked against it."""
    evidence: str | None = None
    """Where noise_scale and largest_stable_lr were measured, shown with the plan. --from RUN fills in all three."""
    extend: bool = False
    """Rule noise: lengthen the schedule by the samples that the larger batch wastes, instead of only warning."""
    budget_samples: Amount | None = None
    """Rule adascale: the most samples the run may spend. Unset: k times the schedule, which is what a gain of 1 would take."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long to train and the shape of the learning rate. Lengths are in the unit of the schedule: epochs, samples or tokens."""

    epochs: Positive | None = None
    """Length in passes over the data. Exclusive with schedule.samples."""
    samples: Amount | None = None
    """Length in samples. Exclusive with schedule.epochs."""
    tokens: Amount | None = None
    """Length in tokens, such as 10B: recipe.sample_tokens of them are one sample."""
    tokens_per_parameter: Positive | None = None
    """Length in tokens for each of recipe.parameters, such as 20."""
    shape: Literal["constant", "linear", "cosine", "step", "exponential", "plateau", "inverse_sqrt", "wsd"] = "constant"
    """Learning rate after the warm-up, as a factor of its peak."""
    milestones: tuple[Length, ...] = ()
    """Shape step: where the rate is multiplied by gamma, in the schedule's unit, counted from the start."""
    gamma: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Shapes step, exponential, plateau: the factor of one drop."""
    every: Length | None = None
    """Shape exponential: one factor gamma per this length. Shape plateau: patience, the length without improvement."""
    threshold: Below1 | None = None
    """Shape plateau: a change of eval.metric by a smaller share of the best value does not count as an improvement. Unset: 1e-4, as
    in torch."""
    decay_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Shape wsd (warm-up, stable, decay): the share of the schedule that decays."""
    final_fraction: Fraction = 0.0
    """Shapes linear, cosine, wsd: the factor at the end. Shape plateau: the smallest factor."""
    on_plateau: Literal["lower_lr", "grow_batch"] = "lower_lr"
    """Shape plateau: multiply the rate by gamma, or the batch by 1/gamma while batch.most allows it."""


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """How the model is placed on the devices. Changing `name` changes nothing else about the run."""

    name: Backend = "ddp"
    """ddp: a whole copy per GPU. fsdp: all in shards over the GPUs (FSDP2). zero0..zero3: DeepSpeed, see harness/README.md."""
    shard: Literal["world", "node"] = "world"
    """fsdp: shards over all GPUs, or over those of one node with a copy per node (HSDP)."""
    reshard: bool = True
    """fsdp: free each block's weights after its forward, gather them again in the backward. false: faster, more memory."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep in host memory: the optimizer's state and step (zero1 to zero3), or the weights too (zero3, fsdp on a GPU)."""
    nvme_path: str | None = None
    """zero3 with offload: a folder on a fast local disk, to keep the optimizer's state there and not in memory. Wants libaio."""
    bucket_mb: Count | None = None
    """Size of a gradient bucket (gradients that are reduced together), in MiB. Unset: 25 for ddp, 200 for ZeRO."""
    static_graph: bool = False
    """ddp: DDP's static_graph: promise that every step uses the same parameters, so that DDP searches for unused ones only once."""
    compress: Literal["none", "bf16", "powersgd"] = "none"
    """ddp: all-reduce gradients as bf16, or as low-rank factors (PowerSGD, lossy). For slow networks."""
    deepspeed: Mapping[str, Any] | None = None
    """zero0 to zero3: further keys of DeepSpeed's own JSON, or the path of a JSON file. Keys that the plan owns are refused."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a pass is computed: settings of speed and memory that do not change the run."""

    compile: bool = False
    """torch.compile each block of the recipe, or the whole model where it names none. The time that it took is printed after the
    first step."""
    recompute: bool = False
    """Activation checkpointing: recompute each block's activations in the backward. Less memory, about a third more time."""
    tf32: bool = False
    """Let NVIDIA GPUs round float32 products to TF32 (10 bits): much faster, not bit for bit float32."""
    channels_last: bool = False
    """Lay image weights out as NHWC, which convolutions on GPUs prefer."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When to evaluate. The end of the run is always evaluated."""

    every_epochs: Positive | None = None
    """Evaluate each time this many epochs have gone by. Exclusive with eval.every_samples."""
    every_samples: Amount | None = None
    """Evaluate each time this many samples have gone by."""
    sharpness: Count | None = None
    """Measure sharpness too, the largest eigenvalue of the loss's Hessian, on so many training samples. Costs some 60 passes."""
    noise_scales: Annotated[int, Meta(ge=2)] | None = None
    """Measure gradient noise scales too, on so many training samples: of SGD, of Adam, of sign descent and of Muon, each in its
    geometry. Costs a forward and backward of each sample, with dropout off."""
    metric: str = "eval/loss"
    """What makes an evaluation the best so far, for the plateau rule and the patience: eval/loss or a metric of the recipe."""
    better: Literal["lower", "higher"] = "lower"
    """Which way eval.metric is better."""
    patience_epochs: Positive | None = None
    """Stop when eval.metric has not improved for this many epochs. Exclusive with eval.patience_samples."""
    patience_samples: Amount | None = None
    """Stop when eval.metric has not improved for this many samples."""
    min_delta: Positive | None = None
    """For the patience, a change of eval.metric by less than this, in its own unit, does not count as an improvement. Unset: any
    improvement counts."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save. The end of the run, and a stop on request, are always saved."""

    every_epochs: Positive | None = None
    """Save each time this many epochs have gone by. Exclusive with every_samples, every_minutes and mtbf_hours."""
    every_samples: Amount | None = None
    """Save each time this many samples have gone by."""
    every_minutes: Positive | None = None
    """Save when this many minutes have gone by."""
    mtbf_hours: Positive | None = None
    """Mean time between failures: save every sqrt(2 x cost x mtbf), the cost as measured. Unset, with every_epochs, every_samples
    and every_minutes: 24."""
    dir: str | None = None
    """Where checkpoints lie: a path, or a URL that fsspec knows (s3://bucket/run). Those of another run are not continued.
    Unset: in the run folder."""
    keep: Count = 2
    """How many of the newest checkpoints are kept."""
    keep_best: Annotated[int, Meta(ge=0)] = 0
    """How many checkpoints with the best eval.metric are kept in addition. Above 0, an evaluation that is the best so far is saved
    at once."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens when training is in trouble. A step that is not finite on any rank never moves a weight on any rank."""

    policy: Literal["watch", "protect"] = "watch"
    """watch: leave out steps that are not finite, and only report everything else. protect: clip spikes, back off from erratic
    updates, roll back a run that diverges or is dead. The settings below change single answers."""
    nonfinite: Literal["skip", "back_off", "roll_back", "stop"] | None = None
    """After a loss or gradient that is not finite: go on with the next batch (skip); also lower the rate (back_off); go back to the
    last good checkpoint (roll_back); end the run (stop). Unset: skip."""
    budget: Annotated[int, Meta(ge=0)] = 10
    """How many steps may be skipped as not finite before the run stops all the same."""
    bad_samples: Annotated[int, Meta(ge=0)] = 10
    """How many samples that cannot be read are left out, each named, before the run stops."""
    spike: Literal["note", "clip", "skip", "back_off", "roll_back", "stop"] | None = None
    """A loss or gradient norm far above the usual. clip, skip: gradients beyond what was usual in the last window are clipped to
    that, or their step is left out, before the weights move. Unset: by guard.policy, note or clip."""
    divergence: Literal["note", "back_off", "warm_up", "roll_back", "stop"] | None = None
    """The loss rises above its start, or loses much of its improvement. warm_up: back to optim.lr, and climb again over twice the
    warm-up. Unset: by guard.policy, note or roll_back."""
    dead: Literal["note", "back_off", "roll_back", "stop"] | None = None
    """The loss stays at that of an untrained model, or the weights stop changing. Unset: by guard.policy."""
    erratic: Literal["note", "back_off", "roll_back", "stop"] | None = None
    """A step changes the weights by a large share of their norm, far more than usual. Unset: by guard.policy, note or back_off."""
    interventions: Annotated[int, Meta(ge=0)] = 8
    """How often the guard may lower the rate or roll back before the run stops."""
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """The factor by which the guard multiplies the rate."""
    recover_epochs: Positive | None = None
    """The rate climbs back to the schedule's over so many epochs. Unset: it stays lowered. Exclusive with guard.recover_samples."""
    recover_samples: Amount | None = None
    """The rate climbs back to the schedule's over so many samples."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """In which order samples come, how worker processes fetch them (recipe.workers), and what happens when one of these fails."""

    order: Literal["full", "blocks"] = "full"
    """full: all samples of an epoch shuffled. blocks: blocks of neighbours in a shuffled order, whose samples are shuffled within a
    window of blocks, so that reads stay local in data that is larger than memory."""
    block: Count = 1024
    """Order blocks: how many neighbouring samples of the data form a block."""
    window: Count = 64
    """Order blocks: how many blocks are shuffled together."""
    timeout_s: Positive = 120.0
    """Seconds to wait for a worker's next batch (or for a single sample, in the search for a bad one) before the worker counts as
    hung."""
    restarts: Annotated[int, Meta(ge=0)] = 3
    """How many workers that died or hung are replaced before the run stops. The sample that caused it is left out as a bad one."""


@dataclass(frozen=True, kw_only=True)
class RestartConfig:
    """What is done about ranks that die or hang. `widebatch launch` starts them again; other launchers end with an error."""

    budget: Annotated[int, Meta(ge=0)] = 3
    """How many times all ranks are restarted from the newest checkpoint after a fault, as long as that brings progress. 0:
    never."""
    hang_s: Seconds = 60.0
    """Seconds without a step or a batch of an evaluation, or in one collective, after which a rank counts as hung. Applies from the
    third step on."""
    hang_factor: Annotated[float, Meta(ge=2, le=1e9)] | None = None
    """A rank in training counts as hung after so many times the median step, where that is less than restart.hang_s: under
    `widebatch launch` on one machine. Unset: after restart.hang_s."""
    hang_least_s: Seconds = 10.0
    """With restart.hang_factor: the fewest seconds without a step that count as a hang."""
    start_s: Seconds = 600.0
    """As restart.hang_s, for phases that may take longer: the start with the first steps, a checkpoint, the end."""
    in_place: bool = False
    """A rank that is killed (not rank 0) is done without: the others continue in their processes, with their weights and the same
    global batch, and the lost rank's passes are theirs. For ddp on CPU ranks of one machine, under `widebatch launch`."""

    spares: Annotated[int, Meta(ge=0, le=1)] = 0
    """1: `widebatch launch` keeps an idle process that has imported everything, on one machine. Ranks that start again are forks of
    it, and need no imports but those of your own files. It costs the memory of one idle rank."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is measured, and where it is reported: W&B, trackers, your own watchers."""

    every_steps: Count = 10
    """Length of a logging window in optimizer steps. Values leave the device once per window."""
    noise_scale: bool = True
    """Measure the gradient noise scale, the batch past which a larger one is wasted."""
    layers: bool = False
    """Norms of weights, updates and gradients for each layer, and not only for each group of parameters."""
    peak_tflops: Positive | None = None
    """Peak of one device at this precision in TFLOP/s, for mfu_pct. Unset: from a table of devices; for a device that is not in it
    mfu_pct is null."""
    baseline: Positive | None = None
    """Samples per second that one device reached alone, for scaling_efficiency_pct."""
    wandb: Literal["off", "offline", "online"] | None = None
    """Weights & Biases: off, a local run folder to sync later, or the service. Unset: as WANDB_MODE says, else online under
    `wandb agent`, else offline."""
    histograms: bool = False
    """Histograms of weights and gradients by layer, in powers of two, at the end of each window: for W&B and TensorBoard. Gradients
    not on zero1 to zero3."""
    loss_by_source: bool = False
    """For a mixture: with each window, the loss of each source's samples in the next step. A window costs a forward pass of a step
    more, and that step's samples are read twice."""
    artifacts: bool = False
    """W&B: log each checkpoint's manifest as an artifact that refers to the checkpoint's files."""
    trackers: tuple[str, ...] = ()
    """Further trackers, by Accelerate's names for them: tensorboard, trackio, mlflow, ..."""
    against: str | None = None
    """Run folder of a reference run: at the end, the losses at equal samples are compared to say whether the rule held."""
    project: str | None = None
    """W&B and trackers: the project. Unset: widebatch; for W&B first WANDB_PROJECT. Under `wandb agent` the sweep's project and
    entity are used."""
    entity: Name | None = None
    """W&B: the user or team that the project belongs to. Unset: WANDB_ENTITY, else your default there."""
    name: Name | None = None
    """W&B and trackers: the name of the run. Unset: the name of its folder; for W&B first WANDB_NAME."""
    group: Name | None = None
    """W&B: the group that the run is shown in, as for all seeds of one experiment. Unset: WANDB_RUN_GROUP, else none."""
    job_type: Name | None = None
    """W&B: the job type, to filter by. Unset: WANDB_JOB_TYPE, else train."""
    tags: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """W&B: tags of the run. Unset: WANDB_TAGS, separated by commas."""
    notes: str | None = None
    """W&B: notes on the run. Unset: WANDB_NOTES."""
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
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    optim: OptimConfig
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    schedule: ScheduleConfig
    backend: BackendConfig = field(default_factory=BackendConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """fp32; bf16 or fp16 autocast over float32 weights (fp16 with loss scaling, on a GPU only); fp64 to compare layouts."""
    init_from: str | None = None
    """Weights to begin with: a .safetensors file, a Hugging Face folder (in shards too), a .pt file of tensors, a folder of torch's
    distributed checkpoint, or the folder of another run. Unset: fresh ones. A run that resumes ignores this and loads its
    checkpoint."""
    init_partial: bool = False
    """Take from init_from what has the names of the model's weights: the missing keep fresh weights, and both these and what is
    left over are listed. A weight of another shape is refused all the same."""
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    run: RunConfig = field(default_factory=RunConfig)
