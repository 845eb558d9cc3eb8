"""A script in the style of Hugging Face's Trainer, three passes a step, with one bug planted, or none (clean, weighted)."""

import sys
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

bug = sys.argv[1]
PASSES, BATCH = 3, 4

generator = torch.Generator().manual_seed(0)
data = torch.randn(192, 6, generator=generator)
label = (data.sum(1) > 0).long()
if bug in ("unequal", "weighted"):
    label[torch.rand(192, generator=generator) < 0.5] = -100
rows = [{"x": x, "labels": y} for x, y in zip(data, label, strict=True)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Deaf(Net):
    """Says by its `**options` that it divides by num_items_in_batch, and does not."""

    def forward(self, x: Tensor, labels: Tensor, **options: Any) -> dict[str, Tensor]:
        return super().forward(x, labels)


class Counting(Net):
    def forward(self, x: Tensor, labels: Tensor, **options: Any) -> dict[str, Tensor]:
        logits = self.head(self.body(x))
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / options["num_items_in_batch"]
        return {"loss": loss, "logits": logits}


class Planted(Trainer):  # type: ignore[misc]
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if bug == "unsynced":
            model = self.accelerator.unwrap_model(model)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if bug == "twice":
            return loss / self.args.gradient_accumulation_steps
        return loss / self.args.world_size if bug == "by ranks" else loss

    def get_train_dataloader(self) -> Any:
        rank = self.args.process_index
        if bug == "same samples":
            return DataLoader(self.train_dataset, batch_size=BATCH, collate_fn=self.data_collator)
        if bug == "own shuffle":
            own = torch.Generator().manual_seed(rank)
            return DataLoader(self.train_dataset, BATCH, shuffle=True, generator=own, collate_fn=self.data_collator)
        return super().get_train_dataloader()


class Steps(TrainerCallback):  # type: ignore[misc]
    def on_train_begin(self, args: Any, state: Any, control: Any, /, *, model: Any, **_: Any) -> None:
        if bug != "same dropout":
            torch.manual_seed(7 + args.process_index)
        if bug == "own weights":
            getattr(model, "module", model).head.reset_parameters()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, /, *, model: Any, optimizer: Any, **_: Any) -> None:
        if bug == "summed":
            for p in model.parameters():
                p.grad.mul_(args.world_size)
        if bug == "own rate":
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + args.process_index)


torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=PASSES,
        max_steps=16,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        ddp_broadcast_buffers=bug != "own buffers",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    net = {"undivided": Deaf, "weighted": Counting}.get(bug, Net)()
    Planted(net, args, train_dataset=rows, callbacks=[Steps()]).train()
