"""Published laws of pre-training language models: what they say of batch and lr before anything is measured.

Step Law (Li et al. 2025, arXiv 2503.04715), AdamW: best batch 0.58 D^0.571 tokens, and at it best lr 1.79 N^-0.713 D^0.307, for D
tokens and N weights without embeddings. Bergsma et al. 2025 (2505.13738) find the best batch as D^0.38 and the critical one as
D^0.47, Zhang et al. 2024 (2410.21676) the critical one as about D^0.47, all nearly independent of N; their levels depend on what
a paper calls critical, and are not taken here. Schaipp 2026 (2607.01487), with 0.667 D^0.566 for the best batch, finds about a
factor WIDTH between the ends of the batches that waste 5 % of the compute.
"""

from dataclasses import dataclass

WIDTH = 4.0
"""Factor past Step Law's batch up to which a batch is not worth a warning."""
LEAST_TOKENS = 1e8
"""The laws were fitted, and repeated by others, down to about this horizon."""
SPREAD = "other laws differ by several times: from D^0.38 to D^0.57"


@dataclass(frozen=True)
class Prior:
    """Batch in tokens and lr, by Step Law."""

    batch: float
    lr: float


def best_batch(tokens: float) -> float:
    """Tokens of the best batch for a horizon of so many tokens, by Step Law."""
    return float(0.58 * tokens**0.571)


def step_law(parameters: float, tokens: float) -> Prior:
    """Step Law's batch and lr."""
    return Prior(best_batch(tokens), float(1.79 * parameters**-0.713 * tokens**0.307))


def best_weight_decay(parameters: float, tokens: float, batch: float, lr: float) -> float:
    """AdamW's decay at which B/(lr wd D) is 1.084 (D/N)^-0.527, the best timescale that Bergsma et al. 2025 fit."""
    return float(batch / (lr * tokens * 1.084 * (tokens / parameters) ** -0.527))
