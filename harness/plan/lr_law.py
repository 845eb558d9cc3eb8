"""The best learning rate as a power law of batch, horizon and model size, as `widebatch fit` writes it and `plan --from` takes it.

    {"law": {"unit": "tokens", "constant": -3.1, "exponents": {"batch": 0.5}, "ranges": {"batch": [8192, 65536], ...}, ...}}

log lr = constant + sum of exponent x log quantity. Batch and horizon are in `unit`; size is in parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.config.errors import UserError
from harness.config.schema import Positive

QUANTITIES = ("batch", "horizon", "parameters")
NEAR, FAR = 1.05, 10.0
"""Factors past what was measured up to which it is no extrapolation, and beyond which a law is not used."""


@dataclass(frozen=True, kw_only=True)
class LrLaw:
    """`ranges`: what was measured of batch, horizon and parameters; `optimizer`: whose rate it is; `source`: as text, how."""

    unit: str
    constant: float
    exponents: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[Positive, Positive]]
    optimizer: str
    source: str

    def lr(self, at: Mapping[str, float]) -> float:
        """The best rate at {batch, horizon, parameters}."""
        return math.exp(self.constant + sum(power * math.log(at[name]) for name, power in self.exponents.items()))

    def reason(self, at: Mapping[str, float]) -> str:
        """The source, and how far this is from what was measured. Raises UserError if that is too far to say anything."""
        apart = {name: max(low / at[name], at[name] / high, 1.0) for name, (low, high) in self.ranges.items()}
        for name, factor in apart.items():
            if factor > FAR:
                low, high = self.ranges[name]
                here = (
                    f"{name} {at[name]:,.0f} is a factor of {factor:,.0f} outside of the fitted range ({low:,.0f} to {high:,.0f})"
                )
                raise UserError("--from", here, f"add runs within {FAR:g} times of it to the fit")
        outside = [f"by a factor of {factor:.2g} in {name}" for name, factor in apart.items() if factor > NEAR]
        return "; extrapolated ".join([self.source, *([" and ".join(outside)] if outside else [])])
