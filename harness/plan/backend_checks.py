"""Which settings go with which backend. What a backend cannot do is refused before anything starts.

What no plan can see: parameters that some passes do not use (a router, dropped layers). ddp and zero0 take them in any pass on any
rank; so does fsdp within what it gathers as one (a block, or all that is outside of the blocks), but a block must run on all ranks
or on none. zero1 to zero3 need the same parameters in every pass on every rank: anything else is refused in the first step, or in
the step in which it is first seen. One limit is DeepSpeed's own: with zero3 a part that one rank alone leaves out stops all ranks,
one in a gather and the others in a reduction, until the launcher's `restart.hang_s` ends them.
"""

from collections.abc import Iterable

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.batch_schedule import Stage
from harness.plan.optimizers import OptimizerFacts
from harness.plan.world import World

ZERO = ("zero1", "zero2", "zero3")
_OWNERS = {
    "shard": ("fsdp",),
    "reshard": ("fsdp",),
    "offload": ("fsdp", *ZERO),
    "nvme_path": ("zero3",),
    "bucket_mb": ("ddp", *ZERO),
    "static_graph": ("ddp",),
    "compress": ("ddp",),
    "deepspeed": ("zero0", *ZERO),
}
"""The backends that have each setting."""


def check_backend(config: Config, facts: OptimizerFacts, world: World) -> None:
    """Raises UserError if a setting is of another backend, or the backend cannot run the optimizer or precision asked for."""
    backend, name = config.backend, config.backend.name
    for setting, owners in _OWNERS.items():
        value, default = getattr(backend, setting), type(backend).__dataclass_fields__[setting].default
        if value != default and name not in owners:
            at = f"is {_said(value)}, but backend.name: {name} has no such setting"
            raise UserError(f"backend.{setting}", at, f"leave it out, or set backend.name: {' or '.join(owners)}")
    _check_optimizer(config, facts)
    _check_chunks(config)
    if config.optim.ema is not None and name in ZERO:
        at = f"is {config.optim.ema:g}, but {name} moves its weights itself, and keeps no average of them"
        raise UserError("optim.ema", at, "leave it out, or use backend.name: ddp, fsdp or zero0")
    _check_precision(config)
    _check_offload(config, world)
    if config.compute.compile and name == "zero3":
        at = "is true, but zero3 gathers weights in hooks, which cannot be compiled"
        raise UserError("compute.compile", at, "leave it out, or use backend.name: fsdp")
    if config.compute.channels_last and name != "ddp":
        at = f"is true, but {name} cuts or sends weights row by row"
        raise UserError("compute.channels_last", at, "leave it out, or use backend.name: ddp")
    _check_sharpness(config)
    _check_in_place(config, world)
    if config.restart.spares and world.nodes > 1:
        raise UserError("restart.spares", "is 1, but ranks of several nodes are started by torchrun", "leave it out")
    if backend.shard == "node" and world.nodes == 1:
        raise UserError("backend.shard", "is node, but the plan has one node", "leave it out, or plan for more --nodes")


def _check_in_place(config: Config, world: World) -> None:
    """A rank can be done without where all others have everything, and no weight moves before the host knows that it is lost."""
    if not config.restart.in_place:
        return
    why = {
        config.backend.name != "ddp": f"{config.backend.name} has no whole copy of weights and moments on each rank",
        world.device == "gpu": "a GPU is given the optimizer's step before the host can know that a rank is lost",
        world.nodes > 1: "over several nodes torchrun restarts all ranks",
        config.backend.compress == "powersgd": "each rank has a remainder of its own under backend.compress: powersgd",
        config.optim.second_moment == "chunks": "optim.second_moment: chunks reduces over a fixed set of ranks",
        config.scaling.rule == "adascale": "adascale needs equal samples on each rank",
        config.batch.grow == "noise": "batch.grow: noise needs equal samples on each rank",
    }
    if reason := why.get(True):
        raise UserError(
            "restart.in_place", f"is true, but {reason}", "leave it out: all ranks start again from the newest checkpoint"
        )


def _check_sharpness(config: Config) -> None:
    """Second derivatives need whole weights, and blocks that are not compiled; noise scales whole weights."""
    if config.eval.noise_scales is not None and config.backend.name not in ("ddp", "zero0"):
        at = f"is {config.eval.noise_scales}, but {config.backend.name} has no rank with whole weights"
        raise UserError("eval.noise_scales", at, "leave it out, or use backend.name: ddp")
    if config.eval.sharpness is None:
        return
    if config.backend.name not in ("ddp", "zero0"):
        at = f"is {config.eval.sharpness}, but {config.backend.name} has no rank with whole weights"
        raise UserError("eval.sharpness", at, "leave it out, or use backend.name: ddp")
    if config.compute.compile:
        at = f"is {config.eval.sharpness}, but compiled blocks have no second derivative"
        raise UserError("eval.sharpness", at, "leave it out, or set compute.compile: false")


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_optimizer(config: Config, facts: OptimizerFacts) -> None:
    """Optimizers that look at whole layers need whole layers."""
    name = config.backend.name
    if name == "fsdp" and not facts.sharded:
        at = f"is {config.optim.name}, which {facts.source} does not do on fsdp's shards"
        raise UserError("optim.name", at, "use another optimizer, or backend.name: ddp")
    if name in ZERO and not facts.elementwise:
        at = f"is {config.optim.name}, which needs whole layers, and {name} shards them"
        raise UserError("optim.name", at, "use another optimizer, or backend.name: ddp")
    if name in ZERO and config.optim.name == "adagrad":
        raise UserError("optim.name", f"is adagrad, whose weight decay {name} drops", "use adam, or backend.name: ddp or fsdp")


def _check_chunks(config: Config) -> None:
    """Squares of chunks need each pass's own gradient on the rank that made it."""
    if config.optim.second_moment == "step":
        return
    backend, optim = config.backend, config.optim
    why = {
        optim.name not in ("adam", "adamw"): (f"{optim.name} is not adam or adamw", "leave it out, or set optim.name: adamw"),
        backend.name != "ddp": (f"{backend.name} adds up ranks' gradients within a pass", "leave it out, or use backend.name: ddp"),
        backend.compress != "none": (f"backend.compress is {backend.compress}", "leave one of them out"),
        backend.static_graph or backend.bucket_mb is not None: (
            "gradients are then reduced after the last pass, not by DDP", "leave out backend.static_graph and backend.bucket_mb",
        ),
        config.precision == "fp16": ("squares of scaled gradients overflow in fp16", "use bf16 or fp32"),
        config.batch.micro == "auto": ("batch.micro is auto, so that a chunk depends on the world", "set batch.micro"),
        config.batch.grow == "noise": ("batch.grow: noise may halve the batch below a chunk", "leave one of them out"),
        optim.betas is not None and optim.betas[1] == 0: ("beta2 is 0: there is no average", "leave it out"),
    }  # fmt: skip
    if reason := why.get(True):
        raise UserError("optim.second_moment", f"is chunks, but {reason[0]}", reason[1])


def check_chunk_size(config: Config, stages: Iterable[Stage], world: World) -> None:
    """Raises UserError where a batch of the run is not whole chunks of batch.micro on each rank."""
    micro = config.batch.micro
    if config.optim.second_moment == "chunks" and isinstance(micro, int):
        for stage in stages:
            if stage.batch % (world.size * micro):
                at = f"is chunks of {micro} samples, but {world.size} ranks have {stage.batch} a step"
                raise UserError("optim.second_moment", at, "choose a batch.micro that divides each rank's share")


def _check_precision(config: Config) -> None:
    name, precision = config.backend.name, config.precision
    if precision == "fp16" and name in ("fsdp", "zero0"):
        at = f"is fp16, and {name} has no common loss scale over ranks"
        raise UserError("precision", at, "use bf16, or backend.name: ddp or zero1 to zero3")
    if precision == "fp64" and name in (*ZERO, "zero0"):
        does = "sends no float64" if name == "zero0" else "keeps its weights in float32"
        raise UserError("precision", f"is fp64, and {name} {does}", "use fp32, or backend.name: ddp or fsdp")


def _check_offload(config: Config, world: World) -> None:
    name, offload = config.backend.name, config.backend.offload
    if config.backend.nvme_path is not None and offload == "none":
        raise UserError("backend.nvme_path", "is given, but nothing is offloaded", "set backend.offload: optimizer")
    if offload == "all" and name in ("zero1", "zero2"):
        raise UserError("backend.offload", f"is all, but {name} keeps whole weights", "use optimizer, or backend.name: zero3")
    if offload == "optimizer" and name == "fsdp":
        raise UserError("backend.offload", "is optimizer, but fsdp offloads weights and optimizer together", "use all")
    if offload != "none" and name == "fsdp" and world.device == "cpu":
        raise UserError("backend.offload", f"is {offload}, but these ranks compute on the CPU already", "leave it out")
