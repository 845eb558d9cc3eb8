"""The JSON that DeepSpeed is given: a pure function of the plan, complete, with nothing left to `auto`.

Rate, schedule, averaging and loss are the engine's, so DeepSpeed gets no scheduler and no optimizer by name. Gradients are
accumulated and reduced in float32 whatever the precision of the weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.config.errors import UserError
from harness.config.schema import BackendConfig
from harness.plan.plan import Plan

BUCKET_MB = 200
_FORBIDDEN = {"optimizer": "optim.name", "scheduler": "schedule.shape", "flops_profiler": "watch"}
"""Sections by which DeepSpeed would do what the plan does, and the setting to use instead."""


def deepspeed_json(plan: Plan, backend: BackendConfig) -> dict[str, Any]:
    """The settings for `deepspeed.initialize`: the plan's, the user's own, and defaults for the rest.

    Raises UserError if the user's own keys contradict the plan's.
    """
    tree = _planned(plan, backend)
    for path, value in _leaves(backend.deepspeed or {}):
        setting = "backend.deepspeed." + ".".join(path)
        if path[0] in _FORBIDDEN:
            raise UserError(setting, f"is {value!r}, but the plan sets it", f"leave it out, see {_FORBIDDEN[path[0]]}")
        if value == "auto":
            raise UserError(setting, "is 'auto', and there is nothing to fill it in", "give a value, or leave it out")
        _merge(tree, path, value, setting)
    for path, value in _leaves(_defaults(plan, backend)):
        _fill(tree, path, value)
    return tree


def _fill(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree.setdefault(path[-1], value)


def _merge(tree: dict[str, Any], path: tuple[str, ...], value: Any, setting: str) -> None:
    """Put one of the user's values where the plan has none. Raises UserError if it has another."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(setting, f"is {value!r}, but the plan has {tree!r} for {key}", "leave it out")
    if path[-1] in tree and tree[path[-1]] != value:
        raise UserError(setting, f"is {value!r}, but the plan says {tree[path[-1]]!r}", "leave it out, or change the run file")
    tree[path[-1]] = value


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything in a tree that is no section."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _planned(plan: Plan, backend: BackendConfig) -> dict[str, Any]:
    """What the plan owns."""
    stage = int(plan.backend.removeprefix("zero"))
    half = plan.precision if stage > 0 else "fp32"
    zero: dict[str, Any] = {"stage": stage, "round_robin_gradients": False}
    if backend.offload != "none":
        disk = backend.nvme_path is not None
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": backend.nvme_path} if disk else {"device": "cpu"}
    if backend.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": plan.micro_batch * plan.passes * plan.processes,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.passes,
        "gradient_clipping": plan.clip if plan.clip is not None and stage > 0 else 0.0,
        "gradient_predivide_factor": 1.0,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": half == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": half == "fp16", "loss_scale": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def _defaults(plan: Plan, backend: BackendConfig) -> dict[str, Any]:
    """What the user may say otherwise: sizes of buffers, and how often DeepSpeed speaks."""
    elements = (backend.bucket_mb or BUCKET_MB) * 2**20 // 4
    zero: dict[str, Any] = {
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": elements,
    }
    if plan.backend == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": elements,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "sub_group_size": 1_000_000_000,
        }
    else:
        zero["allgather_bucket_size"] = elements
    return {
        "fp16": {"initial_scale_power": 16, "loss_scale_window": 2000, "hysteresis": 1, "min_loss_scale": 1},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_optimization": {} if plan.backend == "zero0" else zero,
    }
