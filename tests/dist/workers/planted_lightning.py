"""A training script in the style of Lightning, three passes a step, with one bug planted, or none (clean, weighted)."""

import logging
import sys
import warnings
from contextlib import nullcontext
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

bug = sys.argv[1]
by_hand = bug in ("undivided", "weighted", "unsynced")
PASSES, BATCH = 3, 4

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
generator = torch.Generator().manual_seed(0)
data = torch.randn(192, 6, generator=generator)
label = (data.sum(1) > 0).long()
if bug in ("unequal", "weighted"):
    label[torch.rand(192, generator=generator) < 0.5] = -100


class Task(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        norm = nn.LayerNorm(8) if by_hand else nn.BatchNorm1d(8)  # by hand, Lightning does not have DDP broadcast buffers
        self.net = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 2)
        self.automatic_optimization = not by_hand

    def on_train_start(self) -> None:
        if bug != "same dropout":
            torch.manual_seed(7 + self.global_rank)
        if bug == "own weights":
            self.head.reset_parameters()

    def training_step(self, batch: Any, number: int) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.head(self.net(x)), y)
        if not self.automatic_optimization:
            return self.by_hand(loss, y, number)
        if bug == "twice":
            return loss / self.trainer.accumulate_grad_batches
        return loss / self.trainer.world_size if bug == "by ranks" else loss

    def by_hand(self, loss: Tensor, y: Tensor, number: int) -> None:
        if bug == "weighted":
            world, start = self.trainer.world_size, number // PASSES * PASSES * BATCH * self.trainer.world_size
            count = (label[start : start + PASSES * BATCH * world] != -100).sum()
            loss = loss * (y != -100).sum() * world / count
        if bug == "unsynced":
            loss = loss / PASSES
        with self.trainer.model.no_sync() if bug == "unsynced" and self.trainer.world_size > 1 else nullcontext():
            self.manual_backward(loss)
        if (number + 1) % PASSES == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if bug == "summed":
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.mul_(self.trainer.world_size)
        if bug == "own rate":
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + self.global_rank)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self) -> Any:
        rows: Any = TensorDataset(data, label)
        if bug == "own shuffle":
            own = RandomSampler(rows, generator=torch.Generator().manual_seed(self.global_rank))
            return DataLoader(rows, batch_size=BATCH, sampler=own)
        return DataLoader(rows, batch_size=BATCH)


torch.manual_seed(0)
lightning.Trainer(
    accelerator="cpu",
    devices=8,
    strategy=DDPStrategy(broadcast_buffers=bug != "own buffers", process_group_backend="gloo"),
    accumulate_grad_batches=1 if by_hand else PASSES,
    use_distributed_sampler=bug not in ("same samples", "own shuffle"),
    max_epochs=4,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(Task())
