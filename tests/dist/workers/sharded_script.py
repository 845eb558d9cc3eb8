"""Worker of test_script_run: a small net in an own loop by Accelerate on FSDP2 or DeepSpeed's ZeRO, or whole, on CPU ranks.

`python -m tests.dist.workers.sharded_script KIND RUN.yaml [--bf16] [--poisoned SAMPLE]`: KIND is ddp, fsdp or zero1 to zero3;
the loss of the pass that has SAMPLE is not finite.
"""

import argparse
import math
import os
from typing import Any, Literal

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, InitProcessGroupKwargs, PartialState
from accelerate.utils import DistributedType
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import Run
from harness.supervision.exit_codes import end_orderly

ROWS = 256


def accelerator_of(kind: str, precision: Literal["no", "bf16"]) -> Accelerator:
    """An Accelerator on CPU ranks. It has FSDP on GPUs only: its state is told that this is one, and the rest is its own."""
    if kind.startswith("zero"):
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
        plugin = DeepSpeedPlugin(zero_stage=int(kind[-1]))
        return Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    if kind != "fsdp":
        return Accelerator(cpu=True, mixed_precision=precision)
    sharded = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    accelerator = Accelerator(cpu=True, fsdp_plugin=sharded, mixed_precision=precision)
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = sharded
    return accelerator


def train(accelerator: Accelerator, settings: str, poisoned: int | None) -> None:
    """The loop."""
    torch.manual_seed(0)
    raw = load_digits()
    image, label = torch.tensor(raw.images).float().flatten(1) / 8 - 1, torch.tensor(raw.target)
    data, held_out = (
        TensorDataset(image[:ROWS], label[:ROWS], torch.arange(ROWS)),
        TensorDataset(image[ROWS : 2 * ROWS], label[ROWS : 2 * ROWS]),
    )
    loader, valid = DataLoader(data, batch_size=8, shuffle=True), DataLoader(held_out, batch_size=32)
    model: Any = nn.Sequential(nn.Linear(64, 33), nn.ReLU(), nn.Dropout(0.1), nn.Linear(33, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, valid = accelerator.prepare(model, optimizer, valid)
    run = Run(settings, accelerator, model, optimizer, loader)
    for _ in run.epochs():
        model.train()
        for x, y, sample in run.batches():
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                run.backward(loss * math.nan if poisoned in sample.tolist() else loss)
                run.step()
        model.eval()
        found = []
        for x, y in valid:
            with torch.no_grad():
                found.append(accelerator.gather_for_metrics(nn.functional.cross_entropy(model(x), y, reduction="none")))
        run.evaluated({"loss": torch.cat(found).mean().item()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("settings")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--poisoned", type=int)
    args = parser.parse_args()
    train(accelerator_of(args.kind, "bf16" if args.bf16 else "no"), args.settings, args.poisoned)
    end_orderly(0)
