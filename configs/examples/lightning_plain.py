"""Digits with a small net, by Lightning: before it takes its numbers from a plan."""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()

raw = load_digits()
image, label = torch.tensor(raw.images).float().flatten(1) / 8 - 1, torch.tensor(raw.target)
data = TensorDataset(image[:1408], label[:1408])
steps = args.epochs * 44


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
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def train_dataloader(self):
        return DataLoader(data, batch_size=32)


trainer = lightning.Trainer(accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False)
trainer.fit(Digits())
