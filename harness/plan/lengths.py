"""Wishes in epochs or samples -> samples. The size of the data set is needed only where a wish is in epochs."""

import math
from dataclasses import dataclass

from harness.plan.config import Config
from harness.plan.errors import UserError

DEFAULT_WARMUP_EPOCHS = 5.0
"""Goyal et al. 2017, section 2.2: five epochs of gradual warm-up."""


@dataclass(frozen=True)
class Lengths:
    """Converts lengths. `dataset` is the number of training samples, None where nobody knows it yet."""

    dataset: int | None

    def epochs(self, setting: str, epochs: float) -> int:
        """Samples in `epochs` passes, rounded to the nearest whole sample. Raises UserError without a data set size."""
        if self.dataset is None:
            remedy = "state recipe.samples, or give the length in samples"
            raise UserError("recipe.samples", f"missing, and {setting}: {epochs:g} epochs needs it", remedy)
        if math.isinf(epochs * self.dataset):
            raise UserError(setting, f"{epochs:g} epochs of {self.dataset} samples are too many to count", "train shorter")
        return round(epochs * self.dataset)

    def cadence(self, section: str, epochs: float | None, samples: int | None) -> int | None:
        """Samples between two evaluations or checkpoints, None for never."""
        if epochs is not None and samples is not None:
            raise UserError(section, f"has both every_epochs {epochs:g} and every_samples {samples}", "give one of them")
        if epochs is None:
            return samples
        return max(self.epochs(f"{section}.every_epochs", epochs), 1)

    def optional(self, setting: str, epochs: float | None, samples: int | None) -> int | None:
        """A length that may be given in epochs (as `setting`) or in samples, or not at all."""
        if epochs is not None and samples is not None:
            raise UserError(setting, f"{epochs:g} and {samples} samples are given", "give one of them")
        return samples if epochs is None else max(self.epochs(setting, epochs), 1)

    def horizon(self, config: Config) -> int:
        """Samples of the schedule as wished."""
        epochs, samples = config.schedule.epochs, config.schedule.samples
        if (epochs is None) == (samples is None):
            given = f"both epochs {epochs:g} and samples {samples}" if samples else "neither epochs nor samples"
            raise UserError("schedule", f"has {given}", "give exactly one as the length of the run")
        if samples is not None:
            return samples
        assert epochs is not None  # noqa: S101  narrowed by the first check
        total = self.epochs("schedule.epochs", epochs)
        if total < 1:
            raise UserError("schedule.epochs", f"{epochs:g} is less than one of {self.dataset} samples", "train longer")
        return total

    def shape_length(self, config: Config, setting: str, value: float) -> int:
        """A milestone, period or patience, in the schedule's own unit."""
        if config.schedule.samples is None:
            return self.epochs(f"schedule.{setting}", value)
        if value != int(value):
            raise UserError(f"schedule.{setting}", f"{value:g} is no whole number of samples", "the schedule is in samples")
        return int(value)

    def warmup(self, config: Config, raises_lr: bool, horizon: int, factor: float) -> tuple[int, str]:
        """(samples of warm-up, reason). `factor` is the rule's own rewrite of the length (LEGW)."""
        s = config.scaling
        given = [n for n in ("warmup_epochs", "warmup_samples", "warmup_fraction") if getattr(s, n) is not None]
        if len(given) > 1:
            values = " and ".join(f"{n} {getattr(s, n):g}" for n in given)
            raise UserError("scaling", f"has {values}", "give at most one of them")
        name = f"scaling.{given[0]}" if given else "scaling.warmup_epochs"
        if s.warmup_samples is not None:
            samples, reason = s.warmup_samples, name
        elif s.warmup_fraction is not None:
            samples, reason = round(horizon * s.warmup_fraction), f"{name} {s.warmup_fraction:g} of the schedule"
        elif s.warmup_epochs is not None:
            zero = s.warmup_epochs == 0
            samples, reason = 0 if zero else self.epochs(name, s.warmup_epochs), f"{name} {s.warmup_epochs:g}"
        elif raises_lr:
            samples = self.epochs(name, DEFAULT_WARMUP_EPOCHS)
            reason = f"default {DEFAULT_WARMUP_EPOCHS:g} epochs, since lr is raised (Goyal et al. 2017)"
        else:
            samples, reason = 0, "none asked for, and the rule does not raise lr"
        if factor != 1 and samples:
            samples, reason = round(samples * factor), f"{reason}, x {factor:g} by the rule"
        if samples and samples >= horizon:
            at = f"a warm-up of {samples} samples ({reason}) is not shorter than the schedule of {horizon}"
            raise UserError(name, at, "set scaling.warmup_fraction: 0.1 or train longer")
        return samples, reason


def needs_dataset(config: Config) -> bool:
    """Whether a plan of this config needs the size of the data set: a length in epochs, or perhaps the default warm-up."""
    s = config.scaling
    no_warmup_given = s.warmup_samples is None and s.warmup_fraction is None
    return (
        config.schedule.epochs is not None
        or config.eval.every_epochs is not None
        or config.checkpoint.every_epochs is not None
        or config.eval.patience_epochs is not None
        or config.guard.recover_epochs is not None
        or (no_warmup_given and s.warmup_epochs != 0 and s.rule != "none")
    )
