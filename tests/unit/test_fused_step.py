"""One kernel for each group moves weights and state exactly as torch's own step of the fused optimizer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from harness.engine import fused_step
from harness.engine.fused_step import bare_step, kernel_step, prepare_fused

MAKES: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda groups: Adam(groups, lr=0.1, weight_decay=0.01, fused=True),
    "adamw": lambda groups: AdamW(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-6, fused=True),
    "amsgrad": lambda groups: AdamW(groups, lr=0.1, amsgrad=True, maximize=True, fused=True),
    "sgd": lambda groups: SGD(groups, lr=0.1, weight_decay=0.01, fused=True),
    "nesterov": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True, maximize=True, fused=True),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def trained(make: Callable[[Any], Optimizer], step: Callable[[Optimizer], fused_step.Step]) -> Iterator[Tensor]:
    """Weights and state after six steps at changing rates, the third of which is skipped and the fifth without one gradient."""
    net = model()
    first, *rest = net.parameters()
    optimizer = make([{"params": [first]}, {"params": rest, "weight_decay": 0.0}])
    assert prepare_fused(optimizer)
    move = bare_step(optimizer)
    for number in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (number + 1)
        net(torch.randn(4, 5, generator=torch.Generator().manual_seed(number))).square().sum().backward()
        if number == 4:
            rest[0].grad = None
        move(torch.tensor(float(number == 2)))
        optimizer.zero_grad()
        if number == 0:
            move = step(optimizer)
    for p in net.parameters():
        yield p.detach()
        yield from (value for _, value in sorted(optimizer.state[p].items()))


def by_kernel(optimizer: Optimizer) -> fused_step.Step:
    return kernel_step(optimizer, lambda tensor: tensor)


@pytest.mark.parametrize("name", MAKES)
def test_weights_and_state_are_those_of_torch_s_own_step(name: str) -> None:
    expected = list(trained(MAKES[name], bare_step))
    found = list(trained(MAKES[name], by_kernel))
    assert len(found) == len(expected) >= 6
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_torch_s_own_step_is_called_for_the_first_step_and_for_a_gradient_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    own = AdamW.step

    def counted(self: AdamW, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return own(self, *args)

    monkeypatch.setattr(AdamW, "step", counted)
    list(trained(MAKES["adamw"], by_kernel))
    assert calls == 2


def test_hooks_are_called() -> None:
    heard = []

    def hooked(groups: Any) -> Optimizer:
        optimizer = AdamW(groups, lr=0.1, fused=True)
        optimizer.register_step_post_hook(lambda *_: heard.append(1))
        return optimizer

    list(trained(hooked, by_kernel))
    assert len(heard) == 6
