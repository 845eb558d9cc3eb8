"""`plan --suggest`: batch, lr, weight decay and hours for a model and a budget of tokens, with sources; then what to measure."""

from dataclasses import dataclass

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.device_peaks import PEAKS
from harness.plan.durations import Lengths
from harness.plan.published_laws import LEAST_TOKENS, SPREAD, WIDTH, best_weight_decay, step_law
from harness.plan.token_units import sample_tokens

DEVICE, USED = "H100 80GB HBM3", 0.4
"""Without a measured speed, hours are of this device at this share of its dense bf16 rate."""
WORLDS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Suggestion:
    """Numbers to begin with. `batch` in samples, a power of two; `tokens` of the whole run, `each` of a sample."""

    parameters: int
    tokens: int
    each: int
    batch: int
    lr: float
    weight_decay: float

    @property
    def flags(self) -> str:
        """The suggestion as flags of a run at its own reference batch."""
        batch = f"--batch.reference {self.batch} --batch.total {self.batch}"
        return f"{batch} --optim.name adamw --optim.lr {self.lr:.3g} --optim.weight_decay {self.weight_decay:.3g}"


def suggest(config: Config) -> Suggestion:
    """The suggestion for recipe.parameters and the schedule of a run file. Raises UserError."""
    each, parameters = sample_tokens(config.recipe), config.recipe.parameters
    if parameters is None:
        raise UserError("recipe.parameters", "missing, and --suggest needs it", "state the size of the model, such as 124M")
    if each is None:
        raise UserError("recipe.sample_tokens", "missing, and --suggest is for language models", "state it, such as 2048")
    tokens = Lengths(config.recipe.samples, each).horizon(config)[0] * each
    prior = step_law(parameters, tokens)
    batch = max(2 ** _round_log2(prior.batch / each), 1)
    return Suggestion(parameters, tokens, each, batch, prior.lr, best_weight_decay(parameters, tokens, batch * each, prior.lr))


def _round_log2(value: float) -> int:
    """The power of two nearest to a value, by ratio; 0 for less than 1."""
    power = max(int(value), 1).bit_length() - 1
    return power + (value > 2 ** (power + 0.5))


def hours(s: Suggestion, gpus: int, tflops: float) -> float:
    """Hours of 6 N D operations on GPUs that do `tflops` each."""
    return 6 * s.parameters * s.tokens / (gpus * tflops * 1e12) / 3600


def suggestion_lines(s: Suggestion, tflops: float | None = None, run: str = "RUN.yaml") -> list[str]:
    """The suggestion as text. `tflops`: what one GPU was measured to do."""
    rate = tflops or PEAKS[DEVICE].fp16 * USED
    where = (
        "as measured"
        if tflops
        else f"{USED:.0%} of the dense bf16 peak of an {DEVICE}: an assumption; measure yours with widebatch bench"
    )
    few = s.tokens < LEAST_TOKENS
    lines = [
        f"for {s.parameters:,} parameters and {s.tokens:,} tokens ({s.tokens / s.parameters:.3g} for each parameter)",
        f"batch: {s.batch:,} samples = {s.batch * s.each:,} tokens (Step Law, arXiv 2503.04715: 0.58 D^0.571); {SPREAD}",
        f"  within {WIDTH:g} times the loss hardly depends on it; past that a larger batch saves time and wastes samples",
        f"lr: {s.lr:.3g} for AdamW (Step Law: 1.79 N^-0.713 D^0.307, N without embeddings)",
        f"weight decay: {s.weight_decay:.3g} (Bergsma et al. 2025, arXiv 2505.13738: B/(lr wd D) = 1.084 (D/N)^-0.527)",
        *(["  these laws were fitted at 100 million tokens and more: this is an extrapolation"] if few else []),
        f"operations: {6 * s.parameters * s.tokens:.3g} (6 N D); at {rate:,.0f} TFLOP/s for each GPU ({where}):",
    ]
    fits = [n for n in WORLDS if s.batch % n == 0]
    lines += [f"  {n:>5,} GPUs: {hours(s, n, rate):,.3g} hours, {s.batch // n:,} samples of a step on each" for n in fits]
    return [
        *lines,
        "measure first, on a hundredth of the tokens:",
        f"  1. widebatch lr-range {run}: the largest stable lr",
        f"  2. the noise scale of a short run: widebatch plan {run} --from RUNDIR",
        f"  3. widebatch sweep {run} --batches {max(s.batch // 4, 1)}..{s.batch * 4}, then widebatch fit: your own law",
        f"as flags: {s.flags}",
    ]
