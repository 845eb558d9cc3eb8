"""A byte-level language model on Python's own source: the loop of text_plain.py, which has adopted Run."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from harness import Run

CONTEXT, ROWS = 64, 1024

parser = argparse.ArgumentParser()
parser.add_argument("--run", default="configs/examples/text.yaml")
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
model, optimizer, valid_loader = accelerator.prepare(model, optimizer, valid_loader)
run = Run(args.run, accelerator, model, optimizer, train_loader, item="token")

for epoch in run.epochs():
    model.train()
    for batch in run.batches():
        with accelerator.accumulate(model):
            loss = mean_loss(model, batch)
            run.backward(loss, count=batch[:, 1:].numel())
            run.step()

    model.eval()
    losses = []
    for batch in valid_loader:
        with torch.no_grad():
            loss = mean_loss(model, batch)
        losses.append(accelerator.gather_for_metrics(loss.repeat(len(batch))))
    valid_loss = torch.cat(losses).mean().item()
    run.evaluated({"loss": valid_loss})
    accelerator.print(f"epoch {epoch}: loss {valid_loss:.6f}")
accelerator.end_training()
