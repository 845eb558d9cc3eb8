"""The plan as the arguments of other training tools: Trainer, Accelerate, Lightning, DeepSpeed, torchtune. Pure tables and text."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.config.yaml_text import to_yaml
from harness.plan.deepspeed_config import deepspeed_json
from harness.plan.optimizers import optimizer_facts
from harness.plan.plan import Plan

Tool = Literal["trainer", "accelerate", "lightning", "deepspeed", "torchtune"]
_HF_OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd", "adagrad": "adagrad", "adafactor": "adafactor", "lion": "lion_32bit"}
_HF_SHAPES = {"linear": "linear", "cosine": "cosine", "inverse_sqrt": "inverse_sqrt", "constant": "constant_with_warmup"}
_ADAM_NAMES = {"adamw": "AdamW", "adam": "Adam"}
_CURVE = "the plan's curve and groups: from harness import planned;"


@dataclass(frozen=True)
class Arguments:
    """What one tool takes of a plan: `values` by the tool's own names, and what it does otherwise than the plan, in `notes`."""

    title: str
    values: dict[str, Any]
    notes: tuple[str, ...]


def arguments_for(tool: Tool, config: Config, plan: Plan) -> Arguments:
    """The plan as the arguments of the tool `tool`, for the run `config`. Raises UserError if the tool cannot train as planned."""
    if len(plan.stages) > 1 or plan.rule == "adascale" or config.batch.grow != "none":
        raise UserError(
            "--for", f"is {tool}, which cannot change the batch or apply AdaScale's gain during a run", "leave out batch.grow"
        )
    made = _BUILDERS[tool](config, plan)
    return Arguments(f"{made.title}, for {plan.world_size} ranks", made.values, made.notes + _common(plan))


def text_of(tool: Tool, made: Arguments) -> str:
    """The arguments as they are written for the tool: Python, JSON or YAML. JSON has no place for notes."""
    if tool == "deepspeed":
        return json.dumps(made.values, indent=1)
    comments = [f"# {line}" for line in (made.title, *made.notes)]
    if tool == "torchtune":
        return "\n".join([*comments, to_yaml(made.values).rstrip()])
    rows = [f"    {key!r}: {value!r}," for key, value in made.values.items()]
    return "\n".join([*comments, f"{tool} = {{", *rows, "}"])


def optimizer_arguments(plan: Plan) -> dict[str, Any]:
    """The optimizer's own numbers, by torch's names; what it does not have is left out. Raises UserError for Muon."""
    if plan.optimizer == "muon":
        at = "is muon, which takes the matrices of a recipe's blocks, and another tool's loop has no recipe"
        raise UserError("optim.name", at, "use adamw, or train with widebatch")
    found = {"momentum": plan.momentum, "betas": plan.betas, "alpha": plan.alpha, "eps": plan.eps}
    held = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items() if value is not None}
    nesterov = {"nesterov": True} if optimizer_facts(plan.optimizer).nesterov else {}
    return {"lr": plan.target_lr, "weight_decay": plan.weight_decay} | held | nesterov


def _trainer(config: Config, plan: Plan) -> Arguments:
    shape = _HF_SHAPES.get(plan.schedule.shape)
    values: dict[str, Any] = {
        "learning_rate": plan.target_lr,
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulate,
        "max_steps": plan.total_steps,
        "lr_scheduler_type": shape or "constant_with_warmup",
        "warmup_steps": plan.warmup_steps,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.clip or 0.0,
        "bf16": plan.precision == "bf16",
        "fp16": plan.precision == "fp16",
        "seed": config.run.seed,
        "average_tokens_across_devices": True,
        "logging_nan_inf_filter": False,
    }
    if plan.optimizer in _HF_OPTIMIZERS:
        values["optim"] = _HF_OPTIMIZERS[plan.optimizer]
    if plan.betas and plan.eps:
        values |= {"adam_beta1": plan.betas[0], "adam_beta2": plan.betas[1], "adam_epsilon": plan.eps}
    notes = [f"{_CURVE} Trainer(..., optimizers=planned(model, plan))"]
    if shape is None:
        notes.append(f"without it the rate stays constant: Trainer has no shape {plan.schedule.shape}")
    elif plan.warmup_steps and plan.schedule.start:
        notes.append(f"without it the warm-up begins at 0, not at {plan.schedule.start:g}")
    if "optim" not in values or plan.momentum:
        notes.append(f"without it the optimizer is not the plan's {plan.optimizer} (momentum {plan.momentum})")
    notes.append("warmup_steps below 1, and warmup_ratio, are shares of max_steps: at another batch, other samples")
    notes.append("a model whose forward takes num_items_in_batch divides by the step's count over all ranks; one that does not,")
    notes.append("by each pass's own: with such a model, give all passes equally many items")
    if plan.backend.startswith("zero"):
        notes.append("deepspeed=: the JSON of --for deepspeed, without 'auto'; Trainer fills in its scheduler section")
    if plan.backend == "fsdp":
        notes.append("under FSDP Trainer refuses optimizers=: override create_optimizer_and_scheduler to return planned(...)")
    return Arguments("transformers.TrainingArguments", values, tuple(notes))


def _accelerate(config: Config, plan: Plan) -> Arguments:
    values = {
        "gradient_accumulation_steps": plan.accumulate,
        "mixed_precision": {"fp32": "no", "fp64": "no"}.get(plan.precision, plan.precision),
        "batch_size": plan.micro_batch,
        "max_steps": plan.total_steps,
        "max_grad_norm": plan.clip,
        "optimizer": optimizer_arguments(plan),
    }
    notes = (
        "harness.Run gives a loop all of this, and the guard, telemetry and exact resume: configs/examples",
        f"{_CURVE} optimizer, scheduler = planned(model, plan)",
        "do not prepare() that scheduler: Accelerate steps it once per process",
    )
    return Arguments("accelerate.Accelerator and a loop's own numbers", values, notes)


def _lightning(config: Config, plan: Plan) -> Arguments:
    precisions = {"fp32": "32-true", "fp64": "64-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    strategies = {"fsdp": "fsdp", "zero1": "deepspeed_stage_1", "zero2": "deepspeed_stage_2", "zero3": "deepspeed_stage_3"}
    values = {
        "devices": plan.world_size // plan.nodes,
        "num_nodes": plan.nodes,
        "strategy": strategies.get(plan.backend, "ddp"),
        "precision": precisions[plan.precision],
        "accumulate_grad_batches": plan.accumulate,
        "max_steps": plan.total_steps,
        "gradient_clip_val": plan.clip,
    }
    notes = (
        f"DataLoader(batch_size={plan.micro_batch})",
        f"{_CURVE} in configure_optimizers: optimizer, scheduler = planned(self, plan)",
        'return [optimizer], [{"scheduler": scheduler, "interval": "step"}]: by default it would step once an epoch',
    )
    return Arguments("lightning.Trainer", values, notes)


def _deepspeed(config: Config, plan: Plan) -> Arguments:
    if not plan.backend.startswith("zero"):
        raise UserError("--for", f"is deepspeed, but backend.name is {plan.backend}", "add --backend.name zero2")
    notes = (
        f"optimizer and rate are the script's: {json.dumps({'name': plan.optimizer} | optimizer_arguments(plan))}",
        f"{_CURVE} deepspeed.initialize(optimizer=..., lr_scheduler=...) takes what planned(model, plan) returns",
    )
    return Arguments("DeepSpeed's JSON", deepspeed_json(plan, config.backend), notes)


def _torchtune(config: Config, plan: Plan) -> Arguments:
    if plan.optimizer not in _ADAM_NAMES:
        kind = optimizer_facts(plan.optimizer).source
    else:
        kind = f"torch.optim.{_ADAM_NAMES[plan.optimizer]}"
    cosine = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
    values: dict[str, Any] = {
        "batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulate,
        "optimizer": {"_component_": kind} | optimizer_arguments(plan),
        "lr_scheduler": {"_component_": cosine, "num_warmup_steps": plan.warmup_steps},
        "epochs": 1,
        "max_steps_per_epoch": plan.total_steps,
        "clip_grad_norm": plan.clip,
        "dtype": "bf16" if plan.precision == "bf16" else "fp32",
        "seed": config.run.seed,
    }
    notes = ["its warm-up begins at 0" if plan.schedule.start else "its warm-up is the plan's"]
    if plan.schedule.shape != "cosine":
        values.pop("lr_scheduler")
        notes = [f"it has no shape {plan.schedule.shape}: without lr_scheduler the rate is constant"]
    return Arguments("torchtune's recipe settings", values, tuple(notes))


def _common(plan: Plan) -> tuple[str, ...]:
    """What holds for every tool."""
    if plan.dataset_samples is None or plan.dataset_samples % plan.global_batch == 0:
        return ()
    short = plan.dataset_samples % plan.global_batch
    return (f"each epoch ends in a step of {short} samples at the full rate; here steps go on into the next epoch",)


_BUILDERS: dict[Tool, Callable[[Config, Plan], Arguments]] = {
    "trainer": _trainer,
    "accelerate": _accelerate,
    "lightning": _lightning,
    "deepspeed": _deepspeed,
    "torchtune": _torchtune,
}
TOOLS: tuple[Tool, ...] = tuple(_BUILDERS)
