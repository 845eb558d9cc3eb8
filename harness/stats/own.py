"""The meters for a training loop of your own: plain numbers in, metrics by our names out. No torch, no W&B."""

import math
import time

from harness.stats.events import Metrics
from harness.stats.noise import NoiseScale
from harness.stats.spikes import Spikes


class OwnMeters:
    """Call `step` once for each optimizer step (or each time you log) and log what it gives.

    `batch` is the global batch in samples, `reference` the one at which the recipe was tuned.
    """

    def __init__(self, batch: int, reference: int | None = None) -> None:
        self.batch, self.reference = batch, reference or batch
        self.noise, self.losses, self.norms = NoiseScale(), Spikes(), Spikes()
        self.samples = 0
        self.bad = 0
        self._last = time.monotonic()

    def step(self, loss: float, grad_norm: float | None = None, steps: int = 1) -> Metrics:
        """`steps` optimizer steps more, of mean loss `loss`; `grad_norm` before clipping, of the last."""
        now, self._last = time.monotonic(), self._last
        spent, self._last = now - self._last, now
        self.samples += steps * self.batch
        self.bad += not math.isfinite(loss) or (grad_norm is not None and not math.isfinite(grad_norm))
        out: Metrics = {
            "progress/samples": float(self.samples),
            "train/loss": loss,
            "train/grad_norm": grad_norm,
            "throughput/samples_per_s": steps * self.batch / spent if spent > 0 else None,
            "stability/loss_z": self.losses.z(loss),
            "stability/nonfinite_steps": float(self.bad),
            "batch/global_samples": float(self.batch),
            "batch/ratio": self.batch / self.reference,
            "batch/noise_scale_samples": self.noise.samples,
            "batch/critical_ratio": self.batch / self.noise.samples if self.noise.samples else None,
        }
        self.losses = self.losses.after(loss)
        if grad_norm is not None and grad_norm > 0:
            out["stability/grad_norm_z"] = self.norms.z(math.log(grad_norm))
            self.norms = self.norms.after(math.log(grad_norm))
        return out | {"stability/spikes": float(self.losses.count)}

    def gradients(self, small_square: float, small: float, big_square: float) -> None:
        """Squared gradient norms at a batch of `small` samples and at the whole one: what the noise scale is made of."""
        self.noise = self.noise.after(small_square, small, big_square, self.batch, 1)
