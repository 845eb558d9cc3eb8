"""The other harnesses, each as its own documentation shows it, on the same work: model, batches, optimizer, clipping.

Each gets its batches from the comparison's iterator: none pays for a DataLoader, except where the harness insists on one. With
`log` it logs loss, rate and gradient norm every LOG_EVERY steps by its own means.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from tests.bench.peers.work import CLIP, LOG_EVERY, LR, Hand, Work

Batches = Iterator[Any]
Peer = Callable[[Work, Batches, Path, bool], None]


class Stream(IterableDataset[Any]):
    """Batches for a harness that wants a data set."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Batches:
        return self.batches


class Objective(nn.Module):
    """Model and loss as one module whose output is the mean loss, for harnesses that call the model themselves."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.model = work, work.model()

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The mean loss of a batch."""
        return {"loss": self.work.mean_loss(self.model, batch)}


class JsonLineReader:
    """A log of JSON lines, for harnesses that leave this to the user."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "log.jsonl").open("a")

    def add(self, step: int, loss: Tensor, norm: Any) -> None:
        """One line; both numbers are read back."""
        self.file.write(json.dumps({"step": step, "loss": loss.item(), "lr": LR, "grad_norm": float(norm)}) + "\n")


def hand(work: Work, batches: Batches, folder: Path, log: bool) -> None:
    """The hand loop itself: what the comparison finds between two things that are equal."""
    Hand(work, batches).run()


def accelerate(work: Work, batches: Batches, folder: Path, log: bool) -> None:
    """Accelerate's own loop."""
    from accelerate import Accelerator

    lines = JsonLineReader(folder)
    accelerator = Accelerator(cpu=True)
    model = work.model()
    model, optimizer = accelerator.prepare(model, work.optimizer(model))
    for step, batch in enumerate(batches):
        loss = work.mean_loss(model, batch)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if log and step % LOG_EVERY == 0:
            lines.add(step, loss, norm)


def trainer(work: Work, batches: Batches, folder: Path, log: bool) -> None:
    """Hugging Face's Trainer."""
    from transformers import Trainer, TrainingArguments

    class Fed(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return DataLoader(Stream(batches), batch_size=None)

    objective = Objective(work)
    optimizer = work.optimizer(objective)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=10**9,
        max_grad_norm=CLIP,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="steps" if log else "no",
        logging_steps=LOG_EVERY,
        disable_tqdm=True,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    Fed(objective, arguments, train_dataset=Stream(batches), optimizers=(optimizer, constant)).train()


def fabric(work: Work, batches: Batches, folder: Path, log: bool) -> None:
    """Lightning Fabric."""
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import CSVLogger

    logger = CSVLogger(folder, flush_logs_every_n_steps=LOG_EVERY)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[logger])
    objective = Objective(work)
    model, optimizer = fabric.setup(objective, work.optimizer(objective))
    for step, batch in enumerate(batches):
        loss = model(**batch)["loss"]
        fabric.backward(loss)
        norm = fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if log and step % LOG_EVERY == 0:
            fabric.log_dict({"loss": loss.item(), "lr": LR, "grad_norm": float(norm)}, step=step)


def lightning(work: Work, batches: Batches, folder: Path, log: bool) -> None:
    """Lightning's Trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import grad_norm

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.objective = Objective(work)

        def training_step(self, batch: Any, number: int) -> Tensor:
            loss: Tensor = self.objective(**batch)["loss"]
            if log:
                self.log_dict({"loss": loss, "lr": LR})
            return loss

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if log:
                self.log_dict({"grad_norm": grad_norm(self, 2)["grad_2.0_norm_total"]})

        def configure_optimizers(self) -> Any:
            return work.optimizer(self)

    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=10**9,
        gradient_clip_val=CLIP,
        logger=CSVLogger(folder) if log else False,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    ).fit(Module(), DataLoader(Stream(batches), batch_size=None))


def deepspeed(work: Work, batches: Batches, folder: Path, log: bool) -> None:
    """DeepSpeed without shards (ZeRO-0)."""
    from harness.engine.deepspeed import open_deepspeed

    objective, lines = Objective(work), JsonLineReader(folder)
    settings = {
        "train_micro_batch_size_per_gpu": work.batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
    }
    engine = open_deepspeed(objective, work.optimizer(objective), settings, torch.device("cpu"))
    for step, batch in enumerate(batches):
        loss = engine(**batch)["loss"]
        engine.backward(loss)
        engine.step()
        if log and step % LOG_EVERY == 0:
            lines.add(step, loss, engine.get_global_grad_norm() or 0.0)


OTHERS: dict[str, Peer] = {
    "hand": hand,
    "accelerate": accelerate,
    "transformers": trainer,
    "fabric": fabric,
    "lightning": lightning,
    "deepspeed": deepspeed,
}
