"""A training script in the style of plain Accelerate, three passes a step, with one bug planted, or none (clean, weighted)."""

import sys
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

bug = sys.argv[1]
PASSES, BATCH = 3, 8

accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
generator = torch.Generator().manual_seed(0)
data = torch.randn(256, 6, generator=generator)
label = (data.sum(1) > 0).long()
if bug in ("unequal", "weighted"):
    label[torch.rand(256, generator=generator) < 0.5] = -100
torch.manual_seed(rank if bug == "own weights" else 0)
model: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 64)
torch.manual_seed(7 if bug == "same dropout" else 7 + rank)
dataset = TensorDataset(data, label)
loader: Any
if bug == "own shuffle":
    order = torch.randperm(256, generator=torch.Generator().manual_seed(rank))
    loader = DataLoader(TensorDataset(data[order], label[order]), batch_size=BATCH)
elif bug == "same samples":
    loader = DataLoader(dataset, batch_size=BATCH)
else:
    loader = accelerator.prepare(DataLoader(dataset, batch_size=BATCH))
if bug not in ("unsynced", "own weights"):
    model = accelerator.prepare(model)
if bug == "own buffers" and world > 1:
    model.will_sync_module_buffers = model.broadcast_buffers = False
    model = nn.parallel.DistributedDataParallel(model.module, broadcast_buffers=False)


def weight() -> float:
    """What a pass's mean is multiplied by."""
    if bug == "undivided":
        return 1.0
    if bug == "twice":
        return 1 / PASSES**2
    if bug == "by ranks":
        return 1 / PASSES / int(world)
    return 1 / PASSES


batches = list(loader)
for start in range(0, len(batches) - 1, PASSES):
    step = batches[start : start + PASSES]
    counts = accelerator.gather(torch.stack([(y != -100).sum() for _, y in step])).sum().item()
    for number, (x, y) in enumerate(step):
        alone = number < PASSES - 1 and isinstance(model, nn.parallel.DistributedDataParallel)
        with model.no_sync() if alone else nullcontext():
            loss = nn.functional.cross_entropy(model(x), y)
            scale = (y != -100).sum().item() * world / counts if bug == "weighted" else weight()
            accelerator.backward(loss * scale)
    if bug == "summed":
        for p in model.parameters():
            p.grad.mul_(world)
    for group in optimizer.param_groups:
        group["lr"] /= 1 + rank if bug == "own rate" else 1
    optimizer.step()
    for _ in range(world if bug == "fast schedule" else 1):
        scheduler.step()
    optimizer.zero_grad()
