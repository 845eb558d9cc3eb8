"""The reason of each number of a plan that is not a length."""

from harness.config.schema import Config
from harness.plan.batch import Split
from harness.plan.optimizers import OptimizerFacts
from harness.plan.scaling_rules import DecayMode, Rewrite
from harness.plan.token_units import sample_tokens
from harness.plan.world import World

UNTOLD = "none: recipe.sample_tokens is not set"


SQUARES = {
    "keep": "kept",
    "sde": "1 - k(1 - {})",
    "half_life": "{}^k: the same half-life in samples",
    "half_life_both": "{}^k: the same half-life in samples",
}
"""What becomes of betas and alpha, by scaling.betas."""


def reasons(config: Config, world: World, split: Split, done: Rewrite, facts: OptimizerFacts) -> dict[str, str]:
    """The reason of each number that is not a length."""
    simulated = f"{world.size} ranks simulated by {world.run_by} processes"
    return {
        "world_size": simulated if world.simulated else f"{world.device} ranks",
        "nodes": "as asked",
        "micro_batch": split.micro_reason,
        "accumulate": f"share of {split.global_batch // world.size} per rank / micro_batch {split.micro_batch}",
        "global_batch": split.global_reason,
        **_token_reasons(config),
        "reference_batch": "batch.reference: where the recipe was tuned",
        "ratio": f"k = {split.global_batch} / {config.batch.reference}",
        "rule": done.source,
        "lr": done.reason,
        "adamw_lr": f"{'optim.adamw_lr' if config.optim.adamw_lr else 'optim.lr'} by the same rule, for what Muon leaves to AdamW",
        "reference_lr": config.optim.lr_source or "optim.lr",
        **_optimizer_reasons(config, done, facts),
        "ema": "rho^k: the same half-life in samples (Busbridge et al. 2023, arXiv 2307.13813)",
        "noise_scale": config.scaling.evidence or "scaling.noise_scale",
        "largest_stable_lr": config.scaling.evidence or "scaling.largest_stable_lr",
        "backend": "backend.name",
        "precision": "precision",
    }


def _token_reasons(config: Config) -> dict[str, str]:
    """The reasons of what is counted in tokens."""
    tokens = sample_tokens(config.recipe)
    if not tokens:
        return dict.fromkeys(("global_batch_tokens", "sample_tokens", "total_tokens"), UNTOLD)
    return {
        "global_batch_tokens": f"x {tokens} tokens a sample",
        "sample_tokens": "recipe.sample_tokens" if config.recipe.sample_tokens else "recipe.context",
        "total_tokens": "padding included; the last batch may be short",
    }


def _optimizer_reasons(config: Config, done: Rewrite, facts: OptimizerFacts) -> dict[str, str]:
    """The reasons of the optimizer's numbers beside lr; those that it does not have say so."""
    betas, none = config.scaling.betas or done.betas, f"{config.optim.name} has none"
    square = SQUARES[betas]
    both = f"beta1 kept, {square.format('beta2')}" if betas == "half_life" else square.format("beta")
    momentum = "kept: torch SGD needs no momentum correction (Goyal et al. 2017, remark 2)"
    eps = f"eps x {done.eps:g} by the rule" if done.eps != 1 else "kept"
    return {
        "weight_decay": _decay(config, done, facts),
        "momentum": momentum if facts.momentum is not None else "none",
        "betas": both if facts.betas else none,
        "alpha": square.format("alpha") if facts.alpha is not None else none,
        "eps": eps if facts.eps else none,
    }


def decay_mode(config: Config, done: Rewrite, facts: OptimizerFacts) -> DecayMode:
    """What becomes of weight decay: as the run file says, else as the rule does, where the optimizer's decay has a timescale."""
    return config.scaling.weight_decay or (done.weight_decay if facts.has_timescale else "keep")


def _decay(config: Config, done: Rewrite, facts: OptimizerFacts) -> str:
    if decay_mode(config, done, facts) == "timescale":
        if config.reference.samples or config.reference.tokens:
            return "wd k (D0/D) lr/lr' keeps B/(lr wd D) (Bergsma et al. 2025, arXiv 2505.13738)"
        return "wd k lr/lr' keeps B/(lr wd) (Wang & Aitchison 2024, arXiv 2405.13698)"
    coupled = config.scaling.weight_decay is None and done.weight_decay == "timescale"
    return f"kept: that of {config.optim.name} is coupled, so that another would move the optimum" if coupled else "kept"
