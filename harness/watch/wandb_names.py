"""What a run is called in W&B, and where: by the run file, by the variables that wandb documents, or as we call it.

The run file wins over a variable, as an argument of `wandb.init` does. WANDB_RUN_ID and, under `wandb agent`, the sweep's project
and entity win over all: the agent waits for that run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from harness.config.allowed_names import PROJECT, checked
from harness.config.credentials import check_no_credential
from harness.config.schema import WatchConfig
from harness.watch.wandb_mode import SWEEP

RUN_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
DEFAULT_PROJECT = "widebatch"


@final
@dataclass(frozen=True)
class RunNames:
    """The names of one run. `id` is empty if the run folder's own is used; None is left to wandb. `dir` is where its files lie."""

    project: str
    entity: str | None
    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    notes: str | None
    id: str
    dir: Path


def run_names(watch: WatchConfig, environ: Mapping[str, str], folder: Path) -> RunNames:
    """The names of the run in `folder`. Raises UserError on a variable that W&B could not take."""
    swept = SWEEP in environ
    project, entity = environ.get("WANDB_PROJECT") or None, environ.get("WANDB_ENTITY") or None
    first, second = (project, watch.project) if swept else (watch.project, project)
    words = environ.get("WANDB_TAGS", "").split(",")
    _check_no_credential(environ)
    own_dir = "" if swept else environ.get("WANDB_DIR", "")  # under an agent WANDB_DIR is the folder where the agent was started
    return RunNames(
        project=_project(first or second or DEFAULT_PROJECT),
        entity=(entity or watch.entity) if swept else (watch.entity or entity),
        name=watch.name or environ.get("WANDB_NAME") or folder.name,
        group=watch.group or environ.get("WANDB_RUN_GROUP") or None,
        job_type=watch.job_type or environ.get("WANDB_JOB_TYPE") or "train",
        tags=watch.tags or tuple(_tag(word.strip()) for word in words if word.strip()),
        notes=watch.notes or environ.get("WANDB_NOTES") or None,
        id=_id(environ.get("WANDB_RUN_ID", "")),
        dir=Path(own_dir) if own_dir else folder,
    )


def _check_no_credential(environ: Mapping[str, str]) -> None:
    for name in ("WANDB_NOTES", "WANDB_TAGS", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE"):
        check_no_credential(name, environ.get(name, ""))


def _project(value: str) -> str:
    return checked("WANDB_PROJECT", value, PROJECT, "give a name of letters, digits, blanks and . _ - only")


def _tag(value: str) -> str:
    return checked("WANDB_TAGS", value, r".{1,64}", "separate tags by commas, each of at most 64 characters")


def _id(value: str) -> str:
    return value and checked("WANDB_RUN_ID", value, RUN_ID, "give up to 64 letters, digits and . _ -, or unset it")
