"""Digits from noise: a generator and a discriminator, each with an optimizer of its own, in a loop for Accelerate.

One `Run` ends the steps of one optimizer. Here both get their numbers from a plan: the same losses on any number of ranks, resumed
on any other. A step that is not finite ends the script: no guard stands before two optimizers.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as distance
from torch.utils.data import DataLoader

from harness import OrderBatchSampler, World, load, make_plan, planned

NOISE = 16

parser = argparse.ArgumentParser()
parser.add_argument("--run", default="configs/examples/gan.yaml")
parser.add_argument("--folder", default="runs/gan", help="where the state is kept, from which the next start goes on")
parser.add_argument("--steps", type=int, help="stop after so many steps in all")
args = parser.parse_args()

accelerator = Accelerator(cpu=True)
rank, ranks = accelerator.process_index, accelerator.num_processes
config = load(Path(args.run))
plan = make_plan(config, World(ranks, device="cpu"))
set_seed(config.run.seed)

image = torch.tensor(load_digits().images).float().flatten(1)[:1792] / 8 - 1
stop = args.steps * plan.global_batch if args.steps else plan.total_samples
sampler = OrderBatchSampler(len(image), plan.global_batch, stop, rank=rank, world=ranks, seed=config.run.seed)
loader = DataLoader(image, batch_sampler=sampler)

generator = nn.Sequential(nn.Linear(NOISE, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.Tanh())
discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
(gen_optimizer, gen_scheduler), (dis_optimizer, dis_scheduler) = planned(generator, plan), planned(discriminator, plan)
generator, discriminator, gen_optimizer, dis_optimizer = accelerator.prepare(generator, discriminator, gen_optimizer, dis_optimizer)
accelerator.register_for_checkpointing(sampler, gen_scheduler, dis_scheduler)
if Path(args.folder).exists():
    accelerator.load_state(args.folder)


def noise(step, count):
    """This rank's part of the noise of a step: all ranks draw all of it."""
    drawn = torch.randn(count * ranks, NOISE, generator=torch.Generator().manual_seed(step))
    return drawn[rank * count : (rank + 1) * count].to(accelerator.device)


def moved(loss, optimizer, scheduler, weights):
    """The loss over all ranks, after the step by it of the one optimizer whose `weights` these are."""
    optimizer.zero_grad()
    accelerator.backward(loss, inputs=list(weights))
    optimizer.step()
    scheduler.step()
    found = accelerator.reduce(loss.detach(), "mean").item()
    if found != found:
        raise SystemExit("the loss is not finite")
    return found


first = sampler.state_dict()["samples"] // plan.global_batch
for step, real in enumerate(loader, start=first):
    fake = generator(noise(step, len(real)))
    judged = discriminator(torch.cat([real.to(accelerator.device), fake.detach()])).squeeze(1)
    truth = torch.arange(len(judged), device=judged.device) < len(real)
    dis_loss = moved(distance(judged, truth.float()), dis_optimizer, dis_scheduler, discriminator.parameters())
    fooled = accelerator.unwrap_model(discriminator)(fake).squeeze(1)
    gen_loss = moved(distance(fooled, torch.ones_like(fooled)), gen_optimizer, gen_scheduler, generator.parameters())
    accelerator.print(f"step {step}: discriminator {dis_loss:.8f}, generator {gen_loss:.8f}")
accelerator.save_state(args.folder)
accelerator.end_training()
