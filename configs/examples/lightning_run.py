"""Digits with a small net, by Lightning, with the numbers of a plan: on any number of ranks, resumed on any other."""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import LightningGuard, OrderBatchSampler, World, arguments_for, load, make_plan, planned
from harness.data.sampler_order import SamplerOrder

parser = argparse.ArgumentParser()
parser.add_argument("--run", default="configs/examples/lightning.yaml")
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--folder", default="runs/lightning")
parser.add_argument("--resume", help="a checkpoint of Lightning's")
args = parser.parse_args()

raw = load_digits()
image, label = torch.tensor(raw.images).float().flatten(1) / 8 - 1, torch.tensor(raw.target)
data = TensorDataset(image[:1408], label[:1408])
config = load(Path(args.run))
plan = make_plan(config, World(args.devices, device="cpu"))


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, number):
        image, label = batch
        loss = nn.functional.cross_entropy(self.net(image), label)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer, scheduler = planned(self, plan)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def train_dataloader(self):
        here = {"rank": self.trainer.global_rank, "world": plan.world_size, "micro": plan.micro_batch}
        order = SamplerOrder(len(data), config.run.seed, shuffle=False)
        return DataLoader(data, batch_sampler=OrderBatchSampler(order, plan.global_batch, plan.total_samples, **here))


kwargs = arguments_for("lightning", config, plan).values
callbacks = [LightningGuard(), ModelCheckpoint(args.folder, "{step}", every_n_train_steps=10, save_top_k=-1)]
trainer = lightning.Trainer(accelerator="cpu", logger=False, use_distributed_sampler=False, callbacks=callbacks, **kwargs)
trainer.fit(Digits(), ckpt_path=args.resume)
