"""Where a run starts from: weights of a file or folder put into the fresh model, name by name; what does not fit is listed."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from harness.checkpoint.weight_files import SETTING, Weights, open_weights
from harness.config.errors import UserError
from harness.engine.trained import listed

_PREFIXES = ("", "model.", "module.", "state_dict.", "model_state_dict.")
"""What scripts and wrappers put before the names of all weights."""
_COMPILED = "_orig_mod."


def start_from(model: nn.Module, path: str, *, partial: bool = False) -> str:
    """Give a fresh model, on the host, the weights at `path`. One tensor is read at a time. Raises UserError.

    `partial`: missing and unexpected names are returned as a sentence, "" if there are none, and not refused.
    """
    weights = open_weights(path)
    here = {name.replace(_COMPILED, ""): held for name, held in _state(model).items()}
    there = _names(weights.shapes, here)
    differing = _check_names(here, {name: weights.shapes[full] for name, full in there.items()}, weights, partial=partial)
    there = {name: full for name, full in there.items() if name in here}
    trainable = {id(p) for p in model.parameters()}
    for name, full in there.items():
        try:
            found = weights.fetch(full)
        except (OSError, RuntimeError, ValueError, KeyError) as e:
            raise UserError(SETTING, f"{full} in {weights.where} cannot be read: {e}", "give a whole, undamaged one") from e
        _check_numbers(name, found, here[name], weights.where, finite=id(here[name]) in trainable)
        with torch.no_grad():
            here[name].copy_(found)
    return differing


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that are saved, tied ones under each of their names."""
    return {name: held for name, held in model.state_dict(keep_vars=True).items() if isinstance(held, Tensor)}


def _names(found: Iterable[str], wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """The name here of each name there, under the prefix by which most are known here."""
    known = list(found)

    def under(prefix: str) -> dict[str, str]:
        return {name.removeprefix(prefix).replace(_COMPILED, ""): name for name in known if name.startswith(prefix)}

    return max(map(under, _PREFIXES), key=lambda names: len(names.keys() & wanted.keys()))


def _check_names(here: Mapping[str, Tensor], there: Mapping[str, tuple[int, ...]], weights: Weights, *, partial: bool) -> str:
    """What is missing or unexpected, which only `partial` allows. Raises UserError that lists it, and what has another shape."""
    covered = {id(held) for name, held in here.items() if name in there}
    missing = [name for name, held in here.items() if id(held) not in covered]
    unexpected = [name for name in there if name not in here]
    shaped = [
        f"{name} ({tuple(there[name])} there, {tuple(held.shape)} here)"
        for name, held in here.items()
        if name in there and tuple(there[name]) != tuple(held.shape)
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shaped)]
    wrong = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)
    if not wrong:
        return ""
    if partial and not shaped and covered:
        return f"{weights.where} gave {len(here) - len(missing)} of {len(here)} tensors ({wrong}); the missing ones are fresh"
    remedy = "give weights of this model, by its names"
    if not shaped and covered and not partial:
        remedy += ", or set init_partial: true to begin with what fits"
    raise UserError(SETTING, f"{weights.where} does not fit the model ({wrong})", remedy)


def _check_numbers(name: str, found: Tensor, held: Tensor, where: str, *, finite: bool) -> None:
    """Raises UserError if a weight is of another kind of type (float, integer, complex), or not finite."""
    if found.is_floating_point() != held.is_floating_point() or found.is_complex() != held.is_complex():
        at = f"{name} in {where} is {found.dtype}, and {held.dtype} in the model"
        raise UserError(SETTING, at, "give weights of this model")
    if finite and not torch.isfinite(found).all():
        raise UserError(SETTING, f"{name} in {where} is not finite", "give weights of a run that did not diverge")
