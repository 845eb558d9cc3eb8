"""A byte-level language model on Python's own source: a plain training loop for Accelerate, before it adopts anything."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

CONTEXT, ROWS = 64, 1024

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
args = parser.parse_args()

accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
set_seed(0)

text = Path(argparse.__file__).read_bytes()
rows = [torch.tensor(list(text[i * CONTEXT : (i + 1) * CONTEXT + 1])) for i in range(ROWS + 64)]
train_loader = DataLoader(rows[:ROWS], batch_size=16, shuffle=True)
valid_loader = DataLoader(rows[ROWS:], batch_size=64)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 48)
        self.body = nn.LSTM(48, 96, batch_first=True)
        self.head = nn.Linear(96, 256)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens))[0])


def mean_loss(model, rows):
    return nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


model = Lstm()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
steps = args.epochs * len(train_loader)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
model, optimizer, train_loader, valid_loader, scheduler = accelerator.prepare(
    model, optimizer, train_loader, valid_loader, scheduler
)

for epoch in range(args.epochs):
    model.train()
    for batch in train_loader:
        with accelerator.accumulate(model):
            loss = mean_loss(model, batch)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    model.eval()
    losses = []
    for batch in valid_loader:
        with torch.no_grad():
            loss = mean_loss(model, batch)
        losses.append(accelerator.gather_for_metrics(loss.repeat(len(batch))))
    valid_loss = torch.cat(losses).mean().item()
    accelerator.print(f"epoch {epoch}: loss {valid_loss:.6f}")
accelerator.end_training()
