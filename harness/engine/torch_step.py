"""The end of a step where torch's optimizer lies in this process: normalise, clip, skip or move. Shared by ddp, fsdp and zero0."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from harness.engine.base import BaseEngine


class TorchEngine(BaseEngine):
    """An engine that moves the weights itself. A subclass sets `optimizer` and `_params`, and says how gradients meet."""

    _params: list[nn.Parameter]

    @abstractmethod
    def _grads(self) -> list[Tensor]:
        """The gradients as plain tensors, or as this rank's parts of them."""

    @abstractmethod
    def _meet(self, grads: list[Tensor], local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the sums [loss, count, stop] over all ranks, the gradient's global norm, what the gradients were divided by).

        `local` holds this rank's sums. The norm is of the gradient as it lies in `grads`; both are the same on every rank.
        """

    def _finish(self, local: Tensor) -> Tensor:
        """See BaseEngine._finish."""
        grads = self._grads()
        sums, norm, divided = self._meet(grads, local)
        scale = divided / sums[1]
        if self._closing:
            self._grad_norms = (
                torch.stack(torch._foreach_norm(grads)).to(scale) * scale if len(grads) == len(self._params) else None
            )
        norm = norm * scale
        most = self._most()
        factor = torch.ones_like(norm) if most is None else (most / (norm + 1e-6)).clamp(max=1.0)
        good = torch.isfinite(norm) & torch.isfinite(sums[0])
        if self._limit is not None and self._limit.skip:
            spared = good & (norm > self._limit.norm)
            good, factor = good & ~spared, torch.where(spared, 0.0, factor)
        torch._foreach_mul_(grads, (scale * factor).to(grads[0].device, self.dtype))
        self._row(sums, norm, factor, good)
        self._move(good)
        self.optimizer.zero_grad(set_to_none=True)
        return good

    def _move(self, good: Tensor) -> None:
        """The optimizer's own step, unless `good` (bool, the same on every rank) is false."""
        if all(g.get("fused") for g in self.optimizer.param_groups):
            # torch's fused kernels leave weights and moments alone where found_inf is 1, without asking the host
            self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
            self.optimizer.step()
            return
        self.meters.syncs += 1  # on a GPU this waits for the device: optimizers that torch does not fuse have no other way to skip
        if good:
            self.optimizer.step()
