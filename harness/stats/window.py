"""Sums over the steps of a logging window. True sums: nothing is dropped, a value that is not finite stays visible."""

from dataclasses import dataclass

from harness.stats.events import Metrics


@dataclass(frozen=True)
class Window:
    """What a window adds up to: `samples` and counted `items` over all ranks, `seconds` of training time."""

    loss_sum: float
    items: float
    samples: int
    steps: int
    skipped: int
    seconds: float
    grad_norm: float
    clipped: int
    lr: float

    def metrics(self, item: str, world_size: int, flops_per_item: float | None) -> Metrics:
        """The window's metrics by name. Rates are over training time alone: not evaluation, not checkpoints."""
        rate = 1 / self.seconds if self.seconds > 0 else float("nan")
        out = {
            "train/loss": self.loss_sum / self.items if self.items else float("nan"),
            "train/lr": self.lr,
            "train/grad_norm": self.grad_norm,
            "train/clip_fraction": self.clipped / self.steps,
            "throughput/samples_per_s": self.samples * rate,
            "throughput/samples_per_s_per_device": self.samples * rate / world_size,
            "stability/skipped_steps": float(self.skipped),
        }
        if item == "token":
            out["throughput/tokens_per_s"] = self.items * rate
            out["throughput/tokens_per_s_per_device"] = self.items * rate / world_size
        if flops_per_item is not None:
            out["throughput/tflops_per_device"] = self.items * flops_per_item * rate / world_size / 1e12
        return out
