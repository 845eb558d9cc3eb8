"""Tokens -> samples: a sample of a language model is a row of so many tokens."""

import math

from harness.config.amounts import amount
from harness.config.errors import UserError
from harness.config.schema import RecipeConfig

_CONTEXT = ("bytes_lm", "causal_lm", "tokens")
"""Recipes of which a sample is a row of `context` tokens."""


def sample_tokens(recipe: RecipeConfig) -> int | None:
    """Tokens of one sample, padding included; None if the run file does not say."""
    context = recipe.knobs.get("context") if recipe.use in _CONTEXT else None
    return recipe.sample_tokens or (context if isinstance(context, int) else None)


def to_samples(setting: str, tokens: float, each: int | None) -> int:
    """The whole number of samples of `each` tokens nearest to `tokens`. Raises UserError if it is unknown, or none."""
    if each is None:
        remedy = "state recipe.sample_tokens, the tokens of one sample, or give the length in samples"
        raise UserError("recipe.sample_tokens", f"missing, and {setting}: {tokens:,.0f} needs it", remedy)
    samples = round(tokens / each)
    if samples < 1:
        raise UserError(setting, f"{tokens:,.0f} tokens are less than one sample of {each:,}", "give more")
    return samples


def marked(setting: str, value: int | str, each: int | None) -> int:
    """Samples of a position such as 768, 20k, `250B tokens` or `10k samples`. Raises UserError."""
    if isinstance(value, int):
        return value
    number, _, unit = value.strip().partition(" ")
    if unit not in ("", "samples", "tokens"):
        raise UserError(setting, f"is {value!r}", "give samples, or a text such as `250B tokens`")
    count = int(number) if number.isdecimal() else amount(setting, number)
    return to_samples(setting, count, each) if unit == "tokens" and count else count


def budget(recipe: RecipeConfig, per_parameter: float) -> float:
    """Tokens of a schedule of so many tokens for each parameter. Raises UserError if their number is not stated."""
    if recipe.parameters is None:
        at = f"missing, and schedule.tokens_per_parameter: {per_parameter:g} needs it"
        raise UserError("recipe.parameters", at, "state it, such as 124M, or give schedule.tokens")
    tokens = per_parameter * recipe.parameters
    if math.isinf(tokens):
        at = f"{per_parameter:g} for each of {recipe.parameters:,} parameters are too many to count"
        raise UserError("schedule.tokens_per_parameter", at, "shorten it")
    return tokens
