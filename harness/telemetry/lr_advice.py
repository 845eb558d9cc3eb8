"""A learning rate that is too high for the batch, as text: which rule, which k, what was measured, and what to try next."""

from harness.plan.plan import Plan
from harness.plan.plan_warnings import FEW_WARMUP_STEPS
from harness.plan.schedule_checks import longest_warmup


def too_high(plan: Plan, noise_scale: float | None, spikes: int) -> str:
    """Why the rate may be too high, and the flag to try next. `noise_scale` in samples, None if it is not known."""
    rule = f" (rule {plan.rule} at k = {plan.ratio:g})" if plan.ratio != 1 else ""
    at = f"lr {plan.target_lr:g}{rule} is likely too high"
    seen = [f"{spikes} spike{'s' * (spikes != 1)} so far"] if spikes else []
    if noise_scale is not None:
        past = "past" if plan.global_batch > noise_scale else "below"
        seen.append(f"the batch of {plan.global_batch} is {past} the noise scale of {noise_scale:.0f} samples")
    return f"{at}{': ' * bool(seen)}{', '.join(seen)}; try {_next_flag(plan, noise_scale)}"


def _next_flag(plan: Plan, noise_scale: float | None) -> str:
    """The flag that answers the likeliest cause: a batch past the noise scale, a rule that is steep, a warm-up that is short."""
    raised, steep = plan.target_lr > plan.reference_lr, plan.rule in ("linear", "legw", "noise")
    if raised and noise_scale is not None and plan.global_batch > noise_scale and (smaller := smaller_batch(plan, noise_scale)):
        return f"--batch.total {smaller}{', or --scaling.rule sqrt' if steep else ''}"
    if raised and steep:
        return "--scaling.rule sqrt"
    longer = 2 * max(plan.warmup_samples, FEW_WARMUP_STEPS * plan.global_batch // 2)
    if raised and plan.warmup_steps < FEW_WARMUP_STEPS and longer <= longest_warmup(plan.schedule):
        return f"--scaling.warmup_samples {longer}"
    return f"--optim.lr {plan.reference_lr / 2:g}"


def smaller_batch(plan: Plan, noise_scale: float) -> int | None:
    """A global batch within the noise scale, but not below the reference, that the ranks can share; None if there is none."""
    wanted = max(2 ** (max(int(noise_scale), 1).bit_length() - 1), plan.reference_batch)
    found = wanted // plan.world_size * plan.world_size
    return found if 0 < found < plan.global_batch else None
