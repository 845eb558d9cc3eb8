"""Gradient noise scales in the geometry of the optimizer, from the gradients of equal chunks of samples at the same weights.

The noise scale of SGD compares squared Euclidean norms (McCandlish et al. 2018, 1812.06162): at that batch the noise is as large as
the gradient. Adam divides the gradient by sqrt(v), so the norms are those of g / sqrt(v). Sign descent and Muon move by the sign of
the gradient, of each element or of each matrix's singular values: their noise is measured in the dual norms, the l1 norm and the
nuclear norm (Naganuma et al. 2026, 2602.03001). With s the standard deviation of a sample's gradient, and Cov the covariance of a
matrix's rows or columns, summed over the other:

    sign: (|s|_1 / |G|_1)^2        muon: (tr Cov^(1/2) / |G|_nuclear)^2, sums over matrices

These two take the mean gradient's norm for |G|: noise that is left in it makes them too small, so measure on many samples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer


@final
class GeometryNoise:
    """Adds up chunks' gradients. `scales` is sqrt(v) of Adam by parameter number; `matrices` are the numbers of Muon's matrices."""

    def __init__(self, params: Sequence[Tensor], matrices: Sequence[int], scales: Mapping[int, Tensor]) -> None:
        self._matrices, self._scales, self._chunks = list(matrices), scales, 0.0
        self._sums = [torch.zeros_like(p, dtype=torch.float64) for p in params]
        self._squares = [torch.zeros_like(p, dtype=torch.float64) for p in params]
        sides = [min(params[n].shape) for n in self._matrices]
        self._products = [torch.zeros(side, side, dtype=torch.float64, device=p.device) for side in sides for p in params[:1]]

    def add(self, gradients: Sequence[Tensor]) -> None:
        """The mean gradient of one more chunk, by parameter."""
        self._chunks += 1
        for number, gradient in enumerate(gradients):
            wide = gradient.double()
            self._sums[number] += wide
            self._squares[number] += wide**2
        for product, number in zip(self._products, self._matrices, strict=True):
            product += _gram(gradients[number].double())

    def read(self, samples: int, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The noise scales in samples by name, of all ranks' chunks of `samples` each; `total` sums a tensor over ranks.

        NaN where noise hides the gradient, or fewer than two chunks were added.
        """
        device = self._sums[0].device
        chunks = float(total(torch.tensor(self._chunks, dtype=torch.float64, device=device)))
        if chunks < 2:
            return dict.fromkeys(self._names(), math.nan)
        means = [total(s) / chunks for s in self._sums]
        spread = chunks / (chunks - 1)  # the variance about their own mean is too small by this
        pairs = zip(self._squares, means, strict=True)
        variances = [((total(q) / chunks - m**2) * spread).clamp_(min=0.0) for q, m in pairs]
        found = {"noise_scale": _quadratic(means, variances, chunks, samples)}
        if self._scales:
            weights = [self._scales[n].double() for n in range(len(means))]
            scaled = [m / w for m, w in zip(means, weights, strict=True)]
            found["noise_scale_adam"] = _quadratic(
                scaled, [v / w**2 for v, w in zip(variances, weights, strict=True)], chunks, samples
            )
        noise, size = sum(float(v.sqrt().sum()) for v in variances), sum(float(m.abs().sum()) for m in means)
        found["noise_scale_sign"] = _dual(noise, size, samples)
        if self._matrices:
            noise = size = 0.0
            for product, number in zip(self._products, self._matrices, strict=True):
                covariance = (total(product) / chunks - _gram(means[number])) * spread
                noise += float(torch.linalg.eigvalsh(covariance).clamp(min=0.0).sqrt().sum())
                size += float(torch.linalg.svdvals(means[number]).sum())
            found["noise_scale_muon"] = _dual(noise, size, samples)
        return found

    def _names(self) -> list[str]:
        more = ["noise_scale_adam"] * bool(self._scales) + ["noise_scale_muon"] * bool(self._matrices)
        return ["noise_scale", "noise_scale_sign", *more]


def adam_scales(optimizer: Optimizer, params: Sequence[Tensor]) -> dict[int, Tensor]:
    """sqrt(v) + eps of each parameter by its number, bias-corrected; empty where not all have a second moment, as before a step."""
    found = {}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for number, p in enumerate(params):
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state or "betas" not in groups[id(p)]:
            return {}
        group = groups[id(p)]
        bias = 1 - float(group["betas"][1]) ** float(state["step"]) if "step" in state else 1.0
        found[number] = (state["exp_avg_sq"] / bias).sqrt() + float(group["eps"])
    return found


def muon_matrices(optimizer: Optimizer, params: Sequence[Tensor]) -> list[int]:
    """The numbers of the parameters that Muon updates."""
    matrices = {id(p) for group in optimizer.param_groups if group.get("use_muon") for p in group["params"]}
    return [number for number, p in enumerate(params) if id(p) in matrices]


def _gram(matrix: Tensor) -> Tensor:
    """Products of a matrix's rows, or of its columns where these are fewer: [n, n]."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _quadratic(means: Sequence[Tensor], variances: Sequence[Tensor], chunks: float, samples: int) -> float:
    """Trace of a sample's covariance over the squared norm of the true gradient: the mean's, less the noise that is left in it."""
    trace = sum(float(v.sum()) for v in variances)
    square = sum(float((m**2).sum()) for m in means) - trace / chunks
    return samples * trace / square if square > 0 else math.nan


def _dual(noise: float, size: float, samples: int) -> float:
    """(noise of one sample / gradient)^2; `noise` is of a chunk's mean of `samples`."""
    return samples * (noise / size) ** 2 if size > 0 else math.nan
