"""The plan of a finished run, from its folder, which may be from somebody else or damaged."""

from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from harness.config.errors import UserError
from harness.config.plain_file import read_plain
from harness.config.run_folder import PLAN, RunFolder
from harness.plan.schedule_checks import USES

MOST = 16 << 20
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Size = Annotated[int, Meta(ge=1, le=1 << 53)]
Length = Annotated[float, Meta(ge=0)]


class ToldShape(TypedDict):
    """`schedule` of a plan."""

    shape: str
    horizon: Size
    milestones: list[Length]
    every: Length
    gamma: Length
    decay_fraction: Length
    final_fraction: Length


class ToldPlan(TypedDict):
    """The part of a plan that a branch uses."""

    rule: str
    global_batch: Size
    micro_batch: Size
    total_samples: Size
    warmup_samples: Count
    dataset_samples: Size | None
    lr: Annotated[float, Meta(gt=0)]
    weight_decay: Length
    betas: tuple[float, float] | None
    momentum: NotRequired[float | None]
    adamw_lr: NotRequired[float | None]
    alpha: NotRequired[float | None]
    eps: NotRequired[float | None]
    schedule: ToldShape
    stages: NotRequired[list[object]]


def told_plan(run: Path) -> ToldPlan:
    """The plan in the folder of a run. Raises UserError if there is none that can be read."""
    try:
        told = msgspec.json.decode(read_plain(RunFolder(run).plan, MOST), type=ToldPlan)
    except (OSError, msgspec.MsgspecError, RecursionError) as e:
        raise UserError("RUN", f"{run} holds no {PLAN} ({e})", "give the folder that a run wrote") from e
    if told["schedule"]["shape"] not in USES:
        raise UserError(
            "RUN",
            f"{run}/{PLAN} has schedule.shape {told['schedule']['shape']!r}, which is unknown here",
            "give the folder that a run wrote",
        )
    return told
