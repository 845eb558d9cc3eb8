"""A script in the style of DeepSpeed, three passes a step, with one bug planted, or none (clean, weighted, zero0 to 3)."""

import sys
from typing import Any

import deepspeed
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, TensorDataset

bug = sys.argv[1]
PASSES, BATCH = 3, 4

deepspeed.init_distributed("gloo", verbose=False)
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
generator = torch.Generator().manual_seed(0)
data = torch.randn(192, 6, generator=generator)
label = (data.sum(1) > 0).long()
if bug in ("unequal", "weighted"):
    label[torch.rand(192, generator=generator) < 0.5] = -100
torch.manual_seed(0)
norm = nn.BatchNorm1d(8) if bug == "own buffers" else nn.LayerNorm(8)
model = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
stage = int(bug[-1]) if bug.startswith("zero") else 0 if bug in ("unsynced", "summed") else 1
settings = {
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_accumulation_steps": PASSES,
    "zero_optimization": {"stage": stage},
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 10**9,
}
engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
torch.manual_seed(7 if bug == "same dropout" else 7 + rank)
if bug == "own weights":
    engine.module[-1].reset_parameters()

dataset: Any = TensorDataset(data, label)
sampler: Any = DistributedSampler(dataset, world, rank, shuffle=False)
if bug == "own shuffle":
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(rank))
loader: Any = DataLoader(dataset, batch_size=BATCH, sampler=None if bug == "same samples" else sampler)
if bug == "unsynced":
    engine.enable_backward_allreduce = False
if bug == "summed":
    engine.gradient_average = False

for _ in range(8):
    for number, (x, y) in enumerate(loader):
        loss = nn.functional.cross_entropy(engine(x), y)
        if bug == "twice":
            loss = loss / engine.gradient_accumulation_steps()
        if bug == "by ranks":
            loss = loss / world
        if bug == "weighted":
            start = number // PASSES * PASSES * BATCH * world
            count = (label[start : start + PASSES * BATCH * world] != -100).sum()
            loss = loss * (y != -100).sum() * world * PASSES / count
        engine.backward(loss, scale_wrt_gas=bug != "undivided")
        if bug == "own rate":
            for group in engine.optimizer.param_groups:
                group["lr"] = 0.1 / (1 + rank)
        engine.step()
