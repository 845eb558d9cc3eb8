"""What an optimizer keeps, by parameters' names: tensors and numbers of each parameter, of its group, and of itself.

Names are `PARAMETER/KEY`. What is not a tensor of more than a number has its type before the key, as in `int:step`; what belongs to
the group or to the optimizer itself is written for each parameter, behind `group:` or `self:`, to outlive another grouping.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, Optimizer

from harness.config.errors import UserError
from harness.distributed.process_group import gather
from harness.engine.plain import pack, unpack
from harness.modeling.memory_layout import laid_out_as
from harness.modeling.muon import MuonAdamW

GROUP, SELF = "group:", "self:"
_OURS = ("params", "lr", "lr_scale", "param_names")
"""Entries of a group that the plan or torch owns."""


@final
class OwnNumbers:
    """The entries that an optimizer itself has changed in its groups and attributes since it was made; all other entries are
    settings."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = [_copied(group) for group in optimizer.param_groups]
        self._attributes = _copied(vars(optimizer))

    def changed(self, number: int) -> dict[str, Any]:
        """The changed entries by name, of group `number` and of the optimizer itself."""
        found = {GROUP + k: v for k, v in _changed(self._groups[number], self._optimizer.param_groups[number])}
        return found | {SELF + k: v for k, v in _changed(self._attributes, vars(self._optimizer))}

    def reset(self) -> None:
        """Restore all entries to their values when the optimizer was made."""
        for was, now in [*zip(self._groups, self._optimizer.param_groups, strict=True), (self._attributes, vars(self._optimizer))]:
            for key, value in list(_changed(was, now)):
                if key in was:
                    now[key] = _copy(was[key])
                elif not isinstance(value, Tensor):
                    del now[key]

    def set(self, number: int, name: str, value: Any) -> None:
        """Take over an entry that `changed` gave, for group `number`."""
        if name.startswith(GROUP):
            self._optimizer.param_groups[number][name.removeprefix(GROUP)] = value
        else:
            vars(self._optimizer)[name.removeprefix(SELF)] = value

    def first_step(self) -> list[str]:
        """The notes after the first step."""
        if of_torch(self._optimizer) or any(self._optimizer.state.values()) or any(map(self.changed, range(len(self._groups)))):
            return []
        kind = type(self._optimizer).__name__
        return [f"after its first step {kind} has an empty `state` and no changed attributes: state kept elsewhere is not saved"]

    def check(self, backend: str) -> None:
        """On all ranks together: raises UserError where they have other numbers. Such an optimizer looks at whole weights."""
        if of_torch(self._optimizer):
            return
        mine = [{name: _shown(value) for name, value in self.changed(n).items()} for n in range(len(self._groups))]
        everyone = gather(mine)
        odd = next(
            (name for one in everyone for a, b in zip(one, everyone[0], strict=True) for name in a if a[name] != b.get(name)), ""
        )
        if odd:
            kind, name = type(self._optimizer).__name__, odd.partition(":")[2]
            at = f"is {backend}, on which {kind} has a different {name!r} on each rank: it needs whole weights or gradients"
            raise UserError("backend.name", at, "use backend.name: ddp, or another optimizer")


def of_torch(optimizer: Optimizer) -> bool:
    """Whether an optimizer is one of torch's own."""
    return type(optimizer).__module__.startswith("torch.optim")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple | list | Tensor)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) for k, v in tree.items() if k not in _OURS and not k.startswith("_") and k != "param_groups" and _plain(v)}


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the entries that have changed, except for tensors that did not exist before: they are temporary."""
    for key, value in now.items():
        if key in _OURS or key.startswith("_") or key == "param_groups" or not _plain(value):
            continue
        if key not in was:
            if not isinstance(value, Tensor):
                yield key, value
        elif isinstance(value, Tensor) and isinstance(was[key], Tensor):
            if not (value.dtype == was[key].dtype and torch.equal(value, was[key])):
                yield key, value
        elif type(value) is not type(was[key]) or value != was[key]:
            yield key, value


def _shown(value: Any) -> str:
    return str(value.tolist()) if isinstance(value, Tensor) else repr(value)


def tagged(name: str, value: Any, *, bare: bool = True) -> tuple[str, Tensor] | None:
    """(name with the value's type, the value as a tensor); None for what needs no place. Raises UserError.

    `bare`: a float needs no word for its type, and None no place.
    """
    scope = _scope(name)
    key = name.removeprefix(scope)
    if isinstance(value, Tensor):
        number = value.ndim == 0 and value.dtype == torch.float64
        return f"{scope}tensor:{key}" if number or scope else name, value
    bare = bare and not scope
    if value is None and bare:
        return None
    if type(value) is float:
        return name if bare else f"{scope}float:{key}", torch.tensor(value, dtype=torch.float64)
    if type(value) is bool or (type(value) is int and abs(value) < 1 << 63):
        return f"{scope}{type(value).__name__}:{key}", torch.tensor(value)
    return f"{scope}plain:{key}", _as_text(name, value)


def _scope(name: str) -> str:
    """What an entry belongs to: GROUP, SELF, or nothing for its parameter."""
    return next((s for s in (GROUP, SELF) if name.startswith(s)), "")


def _as_text(name: str, value: Any) -> Tensor:
    """Plain data without tensors, as a text: uint8 [n]. Raises UserError."""
    try:
        text, *tensors = pack(value)
        if tensors:
            raise TypeError("a list of tensors")
    except TypeError as e:
        at = f"the optimizer keeps {e} in {name!r}, which no checkpoint can hold"
        raise UserError("optim.name", at, "choose another optimizer") from e
    return text


def untagged(name: str, tensor: Tensor) -> tuple[str, Any]:
    """What `tagged` was given. Without a type a float64 number is a float; of a group, in earlier versions, an int."""
    scope = _scope(name)
    kind, colon, key = name.removeprefix(scope).partition(":")
    if colon and kind == "tensor":
        return scope + key, tensor
    if colon and kind in ("float", "bool", "int"):
        return scope + key, tensor.item()
    if colon and kind == "plain":
        return scope + key, unpack([tensor])
    if scope:
        return name, int(tensor)
    return name, float(tensor) if tensor.dtype == torch.float64 and tensor.ndim == 0 else tensor


def is_text(name: str) -> bool:
    """Whether an entry holds text, and no numbers that lie as its parameter does."""
    return name.rpartition("/")[2].removeprefix(GROUP).removeprefix(SELF).startswith("plain:")


def name_optimizer(named: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer, own: OwnNumbers) -> dict[str, Tensor]:
    """The state of the parameters, as tensors."""
    homes = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    changed = [own.changed(number) for number in range(len(optimizer.param_groups))]
    out = {}
    for name, parameter in named:
        state = optimizer.state.get(parameter, {}) | (changed[homes[id(parameter)]] if id(parameter) in homes else {})
        for key, value in state.items():
            entry = tagged(key, value)
            if entry is not None:
                out[f"{name}/{entry[0]}"] = entry[1]
    return out


def load_optimizer(model: nn.Module, optimizer: Optimizer, own: OwnNumbers, tensors: Mapping[str, Tensor]) -> None:
    """Take named state over. Group settings (lr, betas, decay) stay as they are: they are the plan's, not the checkpoint's.

    State of its parameter's shape gets the parameter's memory format, in which the optimizer would have made it.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        name, _, tag = full.rpartition("/")
        key, value = untagged(tag, tensor)
        by_name.setdefault(name, {})[key] = value
    parameters = dict(model.named_parameters())
    unknown = sorted(set(by_name) - set(parameters))
    if unknown:
        at = f"the checkpoint has optimizer state for {unknown[0]}, a parameter that the model does not have"
        raise UserError("recipe", at, "use the recipe it was trained with, or start a new run in another place")
    _check_muon(optimizer, by_name)
    _check_whole(parameters, optimizer, by_name)
    held = {parameters[name]: found for name, found in by_name.items()}
    _load_states(optimizer, {p: {k: v for k, v in found.items() if not _shared(k)} for p, found in held.items()})
    own.reset()
    homes = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for parameter, found in held.items():
        for key, value in found.items():
            if _shared(key) and id(parameter) in homes:
                own.set(homes[id(parameter)], key, value)


def _check_muon(optimizer: Optimizer, by_name: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where the state is that of pytorch_optimizer's Muon, which `muon` was in earlier versions."""
    if isinstance(optimizer, MuonAdamW) and any(GROUP + "step" in found for found in by_name.values()):
        at = "the checkpoint is of pytorch_optimizer's Muon, whose lr means another size of update than torch's"
        raise UserError("optim.name", at, "start a new run with init_from: that checkpoint, and tune lr again")


def _check_whole(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, by_name: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where torch's optimizer would have the same entries for parameters, and one lacks some.

    Adafactor's differ between matrices and vectors.
    """
    if not of_torch(optimizer):
        return
    alike: dict[bool, dict[str, set[str]]] = {}
    for name, held in by_name.items():
        found = {key for key in held if not _shared(key)}
        if found:
            alike.setdefault(isinstance(optimizer, Adafactor) and parameters[name].ndim > 1, {})[name] = found
    for entries in alike.values():
        every = set().union(*entries.values())
        for name, found in entries.items():
            if found != every:
                at = f"the checkpoint's optimizer state of {name} has no {', '.join(sorted(every - found))}"
                raise UserError("recipe", at, "remove that checkpoint: the run then resumes from the one before")


def _shared(key: str) -> bool:
    """Whether an entry belongs to the group or to the optimizer itself."""
    return key.startswith((GROUP, SELF))


def _load_states(optimizer: Optimizer, states: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
    """Give an optimizer the state of its parameters; those that it does not hold are left out."""
    place = {id(p): number for number, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    tree = optimizer.state_dict()
    tree["state"] = {
        place[id(parameter)]: {key: _laid_out(value, parameter) for key, value in state.items()}
        for parameter, state in states.items()
        if state and id(parameter) in place
    }
    optimizer.load_state_dict(tree)
    _keep_types(optimizer, tree["state"])


def _laid_out(value: Any, parameter: nn.Parameter) -> Any:
    return laid_out_as(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _keep_types(optimizer: Optimizer, states: Mapping[int, Mapping[str, Any]]) -> None:
    """torch casts state to its parameter's type: give it back the one that it was saved in."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, state in states.items():
        loaded = optimizer.state[parameters[place]]
        for key, value in state.items():
            if isinstance(value, Tensor) and key in loaded and loaded[key].dtype != value.dtype:
                loaded[key] = value.to(loaded[key].device)
