"""Lengths in epochs or samples -> samples. The size of the data set is needed only for lengths in epochs."""

import math
from dataclasses import dataclass

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.token_units import budget, to_samples

DEFAULT_WARMUP_EPOCHS = 5.0
"""Goyal et al. 2017, section 2.2: five epochs of gradual warm-up."""
DEFAULT_WARMUP_FRACTION = 0.1
"""The largest default share of the schedule: five epochs are longer than many fine-tuning runs."""
_HORIZONS = ("epochs", "samples", "tokens", "tokens_per_parameter")
"""The settings that say how long the schedule is."""


@dataclass(frozen=True)
class Lengths:
    """Converts lengths. `dataset`: training samples; `tokens`: those of a sample. None if nobody knows them yet."""

    dataset: int | None
    tokens: int | None = None

    def epochs(self, setting: str, epochs: float) -> int:
        """Samples in `epochs` passes, rounded to the nearest whole sample. Raises UserError without a data set size."""
        if self.dataset is None:
            remedy = "state recipe.samples, or give the length in samples"
            raise UserError("recipe.samples", f"missing, and {setting}: {epochs:g} epochs needs it", remedy)
        if math.isinf(epochs * self.dataset):
            raise UserError(setting, f"{epochs:g} epochs of {self.dataset} samples are too many to count", "shorten it")
        return round(epochs * self.dataset)

    def some(self, setting: str, epochs: float) -> int:
        """As `epochs`, for a length that must be at least one sample. Raises UserError."""
        samples = self.epochs(setting, epochs)
        if samples < 1:
            raise UserError(setting, f"{epochs:g} epochs are less than one of {self.dataset} samples", "give a longer one")
        return samples

    def cadence(self, section: str, epochs: float | None, samples: int | None) -> int | None:
        """Samples between two evaluations or checkpoints, None for never."""
        if epochs is not None and samples is not None:
            raise UserError(section, f"has both every_epochs {epochs:g} and every_samples {samples}", "give one of them")
        if epochs is None:
            return samples
        return self.some(f"{section}.every_epochs", epochs)

    def optional(self, setting: str, epochs: float | None, samples: int | None) -> int | None:
        """A length that may be given in epochs (as `setting`) or in samples, or not at all."""
        if epochs is not None and samples is not None:
            raise UserError(setting, f"{epochs:g} and {samples} samples are given", "give one of them")
        return samples if epochs is None else self.some(setting, epochs)

    def patience(self, config: Config) -> int | None:
        """Samples without an improvement after which the run stops, None for never."""
        given = config.eval
        found = self.optional("eval.patience_epochs", given.patience_epochs, given.patience_samples)
        if found is None and given.min_delta is not None:
            at = f"is {given.min_delta:g}, which only a patience uses, and none is set"
            raise UserError("eval.min_delta", at, "set eval.patience_epochs or eval.patience_samples")
        return found

    def horizon(self, config: Config) -> tuple[int, str]:
        """(samples of the schedule as requested, the setting that says so)."""
        s = config.schedule
        given = {name: getattr(s, name) for name in _HORIZONS if getattr(s, name) is not None}
        if len(given) != 1:
            listed = " and ".join(f"{name} {value:g}" if name == "epochs" else f"{name} {value}" for name, value in given.items())
            at = f"has {'both ' * (len(given) == 2)}{listed}" if given else "has neither epochs nor samples"
            raise UserError("schedule", at, "give exactly one as the length of the run")
        if s.samples is not None:
            return s.samples, f"schedule.samples {s.samples}"
        if s.epochs is not None:
            return self.some("schedule.epochs", s.epochs), f"schedule.epochs {s.epochs:g} x {self.dataset} samples"
        if s.tokens is not None:
            return to_samples("schedule.tokens", s.tokens, self.tokens), f"schedule.tokens {s.tokens:,} / {self.tokens} a sample"
        assert s.tokens_per_parameter is not None  # noqa: S101  one of them is given
        tokens = budget(config.recipe, s.tokens_per_parameter)
        reason = f"{s.tokens_per_parameter:g} tokens for each of {config.recipe.parameters:,} parameters / {self.tokens} a sample"
        return to_samples("schedule.tokens_per_parameter", tokens, self.tokens), reason

    def shape_length(self, config: Config, setting: str, value: float) -> int:
        """A milestone, period or patience, in the schedule's own unit; of tokens_per_parameter that is tokens."""
        s = config.schedule
        if s.tokens is not None or s.tokens_per_parameter is not None:
            return to_samples(f"schedule.{setting}", value, self.tokens)
        if s.samples is None:
            return self.some(f"schedule.{setting}", value)
        if value != int(value):
            raise UserError(f"schedule.{setting}", f"{value:g} is not a whole number of samples", "the schedule is in samples")
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
            samples, reason = 0 if zero else self.some(name, s.warmup_epochs), f"{name} {s.warmup_epochs:g}"
        elif raises_lr:
            return self._default_warmup(name, horizon, factor)
        else:
            samples, reason = 0, "none asked for, and the rule does not raise lr"
        if factor != 1 and samples:
            samples, reason = round(samples * factor), f"{reason}, x {factor:g} by the rule"
        if samples and samples >= horizon:
            at = f"a warm-up of {samples} samples ({reason}) is not shorter than the schedule of {horizon}"
            raise UserError(name, at, f"set scaling.warmup_fraction: {DEFAULT_WARMUP_FRACTION / factor:.3g} or train longer")
        return samples, reason

    def _default_warmup(self, name: str, horizon: int, factor: float) -> tuple[int, str]:
        """Where the rule raises lr and nothing is set: five epochs, by the rule's `factor`, but no more than a tenth of the run."""
        samples, most = round(self.epochs(name, DEFAULT_WARMUP_EPOCHS) * factor), round(DEFAULT_WARMUP_FRACTION * horizon)
        epochs = f"{DEFAULT_WARMUP_EPOCHS:g} epochs" + (f" x {factor:g} by the rule" if factor != 1 else "")
        if most < samples:
            share = f"{100 * DEFAULT_WARMUP_FRACTION:g} % of the schedule"
            return most, f"default {share}, since lr is raised and {epochs} would be longer"
        return samples, f"default {epochs}, since lr is raised (Goyal et al. 2017)"


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
