"""A learning rate that is too high for the batch, said in words: which rule, which k, what was measured, and what to try next."""

from harness.plan.cautions import FEW_WARMUP_STEPS
from harness.plan.plan import Plan


def too_high(plan: Plan, noise_scale: float | None, spikes: int) -> str:
    """Why the rate may be too high, and the flag to try next. `noise_scale` in samples, None where it is not known."""
    at = f"lr {plan.target_lr:g} (rule {plan.rule} at k = {plan.ratio:g}) is likely too high"
    seen = [f"{spikes} spike{'s' * (spikes != 1)} so far"]
    if noise_scale is not None:
        past = "past" if plan.global_batch > noise_scale else "below"
        seen.append(f"the batch of {plan.global_batch} is {past} the noise scale of {noise_scale:.0f} samples")
    return f"{at}: {', '.join(seen)}; try {_next_flag(plan, noise_scale)}"


def _next_flag(plan: Plan, noise_scale: float | None) -> str:
    """The flag that answers the likeliest cause: a batch past the noise scale, a warm-up that is short, a rule that is steep."""
    raised = plan.target_lr > plan.reference_lr
    if raised and noise_scale is not None and plan.global_batch > noise_scale:
        smaller = max(2 ** (max(int(noise_scale), 1).bit_length() - 1), plan.reference_batch)
        return f"--batch.total {smaller}, or --scaling.rule sqrt"
    if raised and plan.rule in ("linear", "legw"):
        return "--scaling.rule sqrt"
    if raised and plan.warmup_steps < FEW_WARMUP_STEPS:
        return f"--scaling.warmup_samples {2 * max(plan.warmup_samples, FEW_WARMUP_STEPS * plan.global_batch // 2)}"
    return f"--optim.lr {plan.reference_lr / 2:g}"
