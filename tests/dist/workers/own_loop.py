"""Worker of test_own_loop: a hand-written Accelerate loop at fixed weights, its noise scale, and the one of single examples."""

import json

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.modeling.noise_meter import PassNoise
from harness.supervision.exit_codes import end_orderly

MICRO, PASSES, STEPS = 8, 4, 1500


def main() -> None:
    """Prints, on rank 0, {"measured", "true", "faulty"}: the last with one step in ten whose gradient is NaN.

    Read once, so that the estimate is the mean over all steps and not over the newest hundred.
    """
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PASSES)
    inner = nn.Linear(6, 1).double()
    data = torch.randn(2048, 6, dtype=torch.float64)
    target = data.sum(1, keepdim=True) + torch.randn(2048, 1, dtype=torch.float64)
    truth = scale_of_examples(inner, data, target)
    model = accelerator.prepare(inner)
    each = [PassNoise(model.parameters(), micro=MICRO, passes=PASSES, ranks=accelerator.num_processes) for _ in range(2)]
    generator = torch.Generator().manual_seed(1 + accelerator.process_index)
    for number in range(STEPS * PASSES):
        rows = torch.randint(len(data), (MICRO,), generator=generator)
        with accelerator.accumulate(model):
            accelerator.backward((model(data[rows]) - target[rows]).square().mean())
        step, part = divmod(number, PASSES)
        each[0].passed()
        bad = step % 10 == 0
        weight = inner.weight.grad
        assert weight is not None
        kept = weight.clone()
        weight.mul_(float("nan") if bad else 1.0)
        each[1].passed()
        weight.copy_(kept)
        if part == PASSES - 1:
            for noise in each:
                noise.stepped()
            inner.zero_grad()
    for noise in each:
        noise.read()
    if accelerator.is_main_process:
        measured, faulty = (noise.scale for noise in each)
        print("TOLD " + json.dumps({"measured": measured.samples, "faulty": faulty.samples, "true": truth}), flush=True)
    accelerator.end_training()


def scale_of_examples(model: nn.Module, data: Tensor, target: Tensor) -> float:
    """Trace of the covariance of per-example gradients over the square of their mean."""
    flat = []
    for x, y in zip(data, target, strict=True):
        grads = torch.autograd.grad((model(x) - y).square().mean(), list(model.parameters()))
        flat.append(torch.cat([g.flatten() for g in grads]))
    each = torch.stack(flat)
    mean = each.mean(0)
    return float((each - mean).square().sum(1).mean() / mean.square().sum())


if __name__ == "__main__":
    main()
    end_orderly(0)
