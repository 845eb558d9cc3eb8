"""Digits with a small convolutional net: a plain training loop for Accelerate, before it adopts anything."""

import argparse

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
set_seed(0)

raw = load_digits()
image, label = torch.tensor(raw.images).float().unsqueeze(1) / 8 - 1, torch.tensor(raw.target)
train_data = TensorDataset(image[:1408], label[:1408])
valid_data = TensorDataset(image[1408:], label[1408:])
train_loader = DataLoader(train_data, batch_size=32, shuffle=True)
valid_loader = DataLoader(valid_data, batch_size=128)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1, stride=2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
steps = args.epochs * len(train_loader)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
model, optimizer, train_loader, valid_loader, scheduler = accelerator.prepare(
    model, optimizer, train_loader, valid_loader, scheduler
)

for epoch in range(args.epochs):
    model.train()
    for image, label in train_loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(image), label)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    model.eval()
    total, right, seen = 0.0, 0, 0
    for image, label in valid_loader:
        with torch.no_grad():
            logits = model(image)
        logits, label = accelerator.gather_for_metrics((logits, label))
        total += nn.functional.cross_entropy(logits, label, reduction="sum").item()
        right += (logits.argmax(-1) == label).sum().item()
        seen += len(label)
    accelerator.print(f"epoch {epoch}: loss {total / seen:.6f}, accuracy {100 * right / seen:.1f} %")
accelerator.end_training()
