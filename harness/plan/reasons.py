"""The reason of each number of a plan that is not a length."""

from harness.plan.batch import Split
from harness.plan.config import Config
from harness.plan.optimizers import OptimizerFacts
from harness.plan.rules import Rewrite
from harness.plan.world import World


def reasons(config: Config, world: World, split: Split, done: Rewrite, facts: OptimizerFacts) -> dict[str, str]:
    """The reason of each number that is not a length."""
    betas, decay = config.scaling.betas or done.betas, config.scaling.weight_decay or done.weight_decay
    played = f"{world.size} ranks played by {world.run_by} processes" if world.simulated else f"{world.device} ranks"
    decayed = {"keep": "kept", "timescale": "wd k lr/lr' keeps B/(lr wd) (Wang & Aitchison 2024, arXiv 2405.13698)"}
    kept = {"keep": "kept", "sde": "1 - k(1 - beta)", "half_life": "beta^k: the same half-life in samples"}
    return {
        "world_size": played,
        "nodes": "as asked",
        "micro_batch": split.micro_reason,
        "accumulate": f"share of {split.global_batch // world.size} per rank / micro_batch {split.micro_batch}",
        "global_batch": split.global_reason,
        "reference_batch": "batch.reference: where the recipe was tuned",
        "ratio": f"k = {split.global_batch} / {config.batch.reference}",
        "rule": done.source,
        "lr": done.reason,
        "reference_lr": "optim.lr",
        "weight_decay": decayed[decay],
        "momentum": "kept: torch SGD needs no momentum correction (Goyal et al. 2017, remark 2)"
        if facts.momentum is not None
        else "none",
        "betas": kept[betas] if facts.betas else f"{config.optim.name} has none",
        "eps": (f"eps x {done.eps:g} by the rule" if done.eps != 1 else "kept") if facts.eps else f"{config.optim.name} has none",
        "ema": "rho^k: the same half-life in samples (Busbridge et al. 2023, arXiv 2307.13813)",
        "noise_scale": config.scaling.evidence or "scaling.noise_scale",
        "largest_stable_lr": config.scaling.evidence or "scaling.largest_stable_lr",
        "backend": "backend.name",
        "precision": "precision",
    }
