"""The run file of a script: from its settings and its DataLoader."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from harness.config.errors import UserError
from harness.config.loader import decode, read_tree
from harness.config.schema import Config
from harness.modeling.tuned_optimizer import with_tuned
from harness.recipes.base import SCRIPT

Settings = str | Path | Mapping[str, Any]
"""A run file, or its sections."""
_EVALUATED = ("every_epochs", "every_samples", "sharpness", "noise_scales", "patience_epochs", "patience_samples")
"""Settings of `eval` that a script decides itself."""


@final
@dataclass(frozen=True)
class ScriptLoader:
    """What a script's DataLoader says: its data, how samples become a batch, by how many workers, and in which order."""

    data: Any
    collate: Any
    workers: int
    batch: int
    shuffle: bool

    @staticmethod
    def of(loader: "DataLoader[Any]") -> "ScriptLoader":
        """Raises UserError for a loader whose order or batches are not known here."""
        remedy = "give the DataLoader as it was before accelerator.prepare, of a map-style data set, with batch_size and shuffle"
        if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
            raise UserError("Run", "got a loader with a batch_sampler of its own", remedy)
        sampler = loader.sampler
        if not isinstance(sampler, RandomSampler | SequentialSampler):
            raise UserError("Run", f"got a loader that samples by {type(sampler).__name__}", remedy)
        data: Any = loader.dataset
        if isinstance(sampler, RandomSampler) and (sampler.replacement or len(sampler) != len(data)):
            raise UserError("Run", "got a loader whose sampler draws with replacement, or leaves samples out", remedy)
        shuffle = isinstance(sampler, RandomSampler)
        return ScriptLoader(data, loader.collate_fn, loader.num_workers, loader.batch_size or 1, shuffle)


def script_config(settings: Settings, loader: ScriptLoader, optimizer: Optimizer, precision: str, backend: str) -> Config:
    """The settings as a run file that the script has filled in. Raises UserError if they contradict the script."""
    tree = dict(settings) if isinstance(settings, Mapping) else read_tree(Path(settings))
    _check_own(tree)
    if tree.setdefault("precision", precision) != precision:
        at = f"is {tree['precision']}, but the script's Accelerator computes in {precision}"
        raise UserError("precision", at, "leave it out: the Accelerator decides")
    tree["backend"] = _backend(tree.get("backend") or {}, backend)
    tree["optim"] = with_tuned(dict(tree.get("optim") or {}), optimizer)
    tree["recipe"] = {"use": SCRIPT, "samples": len(loader.data)}
    config = decode(tree)
    if config.batch.micro == "auto":
        config = replace(config, batch=replace(config.batch, micro=loader.batch))
    return config


def _check_own(tree: Mapping[str, Any]) -> None:
    """Raises UserError for settings of what the script does itself."""
    for name in ("recipe", "compute", "init_from"):
        if tree.get(name):
            raise UserError(name, "is given, but model, data and loss are the script's", "leave it out")
    for key in _EVALUATED:
        if (tree.get("eval") or {}).get(key) is not None:
            raise UserError(f"eval.{key}", "is given, but the script evaluates", "leave it out, and call run.evaluated(metrics)")
    if (tree.get("watch") or {}).get("loss_by_source"):
        raise UserError("watch.loss_by_source", "is true, but the script computes its loss", "leave it out")


def _backend(section: Mapping[str, Any], found: str) -> dict[str, str]:
    """The section `backend` of a script whose Accelerator shards as `found` says. Raises UserError if it says otherwise."""
    for key, value in ({"name": found} | dict(section)).items():
        if key != "name":
            raise UserError(f"backend.{key}", "is given, but Accelerate sets up the backend", "leave it out, and tell Accelerate")
        if value != found:
            at = f"is {value}, but the script's Accelerator runs on {found}"
            raise UserError(
                "backend.name", at, "leave it out: the Accelerator decides (accelerate launch --use_fsdp, --use_deepspeed)"
            )
    return {"name": found}
