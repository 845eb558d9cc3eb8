"""The guard and the order of samples in Lightning's Trainer: a callback."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch

from harness.config.errors import UserError
from harness.data.samplers import OrderBatchSampler
from harness.supervision.output_redirect import say

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:  # without Lightning there is no Trainer that would call it
        Callback = object

_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


@final
class LightningGuard(Callback):  # type: ignore[misc]
    """`lightning.Trainer(..., callbacks=[LightningGuard()])`: steps that are not finite are left out, up to `budget` of them.

    With an OrderBatchSampler in the training DataLoader (and use_distributed_sampler=False) it also puts the samples seen into
    Lightning's checkpoints, those saved between steps, so that fit(ckpt_path=...) goes on at the next sample, on any number of
    ranks. Lightning counts a step that was left out, and its schedule moves on. The norm is looked at once a step, which
    synchronises with the GPU. Raises UserError for a strategy that holds gradients in shards, for a sampler that Lightning would
    replace, or if lightning is not installed.
    """

    def __init__(self, budget: int = 10) -> None:
        if Callback is object:
            raise UserError("LightningGuard", "needs lightning, which is not installed", "pip install 'widebatch[lightning]'")
        self._budget = budget
        self._sampler: OrderBatchSampler | None = None
        self._samples = self._first_step = 0
        self.skipped: list[int] = []
        """The steps that were left out, the first step being 1."""

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Take up the order of samples. Raises UserError for a strategy or a sampler with which it cannot work."""
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDED:
            at = f"cannot see the gradients of {strategy}, which holds them in shards"
            raise UserError("LightningGuard", at, "leave it out, or write the model as a recipe")
        sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
        if not isinstance(sampler, OrderBatchSampler):
            return
        self._sampler, self._first_step = sampler, trainer.global_step
        sampler.load_state_dict({"samples": self._samples})

    def on_before_optimizer_step(self, trainer: "Trainer", pl_module: "LightningModule", optimizer: Any) -> None:
        """Drop the gradients of a step that is not finite: an optimizer leaves weights without a gradient alone."""
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not held or bool(torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in held]))):
            return
        for parameter in held:
            parameter.grad = None
        step = trainer.global_step + 1
        self.skipped.append(step)
        if trainer.is_global_zero:
            say(f"warn   step {step}: the gradient is not finite, and the step was left out on all ranks")
        if len(self.skipped) > self._budget:
            if trainer.is_global_zero:
                say(f"error: {len(self.skipped)} steps were not finite, more than {self._budget}: training stops; lower the rate")
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Put the samples seen into Lightning's checkpoint."""
        if self._sampler is not None:
            checkpoint["widebatch"] = self._sampler.state_after(trainer.global_step - self._first_step)

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Continue from the samples seen: the sampler begins there, so Lightning's count of batches begins again."""
        state: Mapping[str, int] | None = checkpoint.get("widebatch")
        if state is not None:
            self._samples = state["samples"]
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            progress["total"]["completed"] = progress["total"][
                "processed"
            ]  # else it counts the last batch again, into the next step
            progress["current"] = dict.fromkeys(_COUNTS, 0)


_COUNTS = ("ready", "completed", "started", "processed")
