"""Histograms over octaves: one bin for each power of two, of either sign, and one for what is nearly 0.

The same bins for every tensor, so that the counts of shards and ranks add up, and no range has to be known first.
"""

from dataclasses import dataclass

LOW, HIGH = -40, 16
"""|x| < 2^LOW counts as 0; the outermost bins hold what lies beyond 2^HIGH."""
OCTAVES = HIGH - LOW
BINS = 2 * OCTAVES + 1
ZERO = OCTAVES
"""The number of the bin for 0."""
_UPPER = [2.0**power for power in range(LOW, HIGH + 1)]
EDGES = [-edge for edge in reversed(_UPPER)] + _UPPER
"""The BINS + 1 edges."""


@dataclass(frozen=True)
class Histogram:
    """`counts` of the values between each two of `edges`, from the first bin that holds any to the last. Both empty: no value."""

    counts: list[int]
    edges: list[float]

    @staticmethod
    def of(counts: list[float]) -> "Histogram":
        """From the counts of all BINS."""
        held = [number for number, count in enumerate(counts) if count]
        if not held:
            return Histogram([], [])
        first, last = held[0], held[-1] + 1
        return Histogram([round(count) for count in counts[first:last]], EDGES[first : last + 1])

    @property
    def middles(self) -> list[float]:
        """The middle of each bin."""
        return [(low + high) / 2 for low, high in zip(self.edges[:-1], self.edges[1:], strict=True)]
