"""What DeepSpeed 0.19 holds on one rank around the model's own passes, simulated on fake tensors for the memory tracker to see.

A float32 slice of the weights with its moments; buckets in which gradients travel, which stages 1 and 2 take at the first gradient
of a backward and give back after it, and stage 3 keeps; a slice of the gradients. Stage 3 keeps a slice of the weights too, and
gathers the others for the passes. `python -m tests.bench.predict` holds it against what real ranks take.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.config.schema import BackendConfig
from harness.plan.deepspeed_config import deepspeed_json
from harness.plan.plan import Plan


@final
class ZeroMemory:
    """The tensors of stages 1 to 3 for `model`, whose `optimizer` then moves this rank's slice instead of the whole weights.

    Raises UserError if they lie elsewhere than on the rank's device.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, planned: Plan, backend: BackendConfig) -> None:
        if backend.offload != "none":
            at = f"is {backend.offload}, and the host memory that it takes is not predicted"
            raise UserError("backend.offload", at, "measure instead: widebatch find-batch, without --predict")
        settings: Mapping[str, Any] = deepspeed_json(planned, backend)["zero_optimization"]
        self._stage, self._ranks, self._half = settings["stage"], planned.world_size, planned.precision != "fp32"
        self._sums_whole = self._stage == 1 and self._half
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._bucket_elements, self._copies = settings["reduce_bucket_size"], 2 if settings["overlap_comm"] else 1
        self._optimizer, self.last = optimizer, True
        self._masters = []
        for group in optimizer.param_groups:
            self._masters.append(nn.Parameter(torch.zeros(self._slice(sum(p.numel() for p in group["params"])))))
            group["params"] = self._masters[-1:]
        self._kept = self._for_good(settings)
        self._buckets: list[Tensor] = []
        self._landing: Tensor | None = None
        self._slice_sum: Tensor | None = None
        for p in self._weights:
            p.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def _for_good(self, settings: Mapping[str, Any]) -> list[Tensor]:
        """What stays from step to step, besides weights, master weights and moments."""
        whole = sum(p.numel() for p in self._weights)
        if self._sums_whole:
            return [torch.empty(whole)]
        if self._stage < 3:
            return []
        few = settings["stage3_param_persistence_threshold"]
        gathered = [p for p in self._weights if p.numel() > few]
        size = self._weights[0].element_size()
        self.gathered = sum(p.numel() for p in gathered) * size
        excess = max(self.gathered - settings["stage3_max_live_parameters"] * size, 0)
        self.never_whole = excess
        shares = [torch.empty(self._slice(p.numel()), dtype=p.dtype) for p in self._weights]
        return [*shares, torch.empty(self._slice(whole)), self._bucket()]

    gathered = 0
    """Bytes of weights that are gathered (whole) within a step only."""
    never_whole = 0
    """The part of `gathered` that is never whole at the same time as the rest."""

    def external(self) -> list[Tensor]:
        """What is there before the first step."""
        return [*self._masters, *self._kept]

    def _slice(self, elements: int) -> int:
        return -(-elements // self._ranks)

    def _bucket(self) -> Tensor:
        """A bucket: stage 2 reduces in the type of the weights, the others in float32."""
        return torch.empty(self._bucket_elements, dtype=self._weights[0].dtype if self._stage == 2 else torch.float32)

    def _my_gradients(self) -> Tensor:
        return torch.empty(sum(m.numel() for m in self._masters))

    def _arrived(self, p: Tensor) -> None:
        """A gradient has been computed: it goes into a bucket, and this rank's slice of it into its slice of gradients.

        Stage 1 waits for the last pass.
        """
        if self._stage < 3 and not self._sums_whole:
            if not self._buckets:
                self._buckets = [self._bucket() for _ in range(self._copies)]
            if self._stage == 1 and not self.last:
                return
            if self._landing is None:
                self._landing = self._my_gradients()
        p.grad = None

    def passed(self) -> None:
        """A backward is over: the received gradients are accumulated. Stage 1 keeps its buckets until the last pass of a step."""
        if self._landing is not None:
            added = self._landing if self._half else self._my_gradients()  # a copy in float32
            self._slice_sum = added if self._slice_sum is None else self._slice_sum
            del added
        self._landing = None
        if self._stage != 1 or self.last:
            self._buckets = []

    def step(self) -> None:
        """The slices move, each by its slice of the gradient."""
        for master in self._masters:
            master.grad = torch.empty_like(master)
        self._slice_sum = None
        self._optimizer.step()
        for master in self._masters:
            master.grad = None
