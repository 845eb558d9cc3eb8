"""Which samples the weights of a run have seen, from what its processes wrote down, through any number of kills."""

from collections import Counter
from pathlib import Path


def trained(folder: Path, ranks: int, passes: int) -> list[Counter[int]]:
    """Samples of each step that counts: those of the last start that took it. `passes` per step and rank.

    Raises AssertionError where a start began at a step that none before it had reached.
    """
    steps: list[Counter[int]] = []
    for start in sorted(folder.glob("*.start")):
        began = int(start.read_text().split()[0])
        assert began <= len(steps), f"{start.name} begins after step {began}, but only {len(steps)} were taken"
        del steps[began:]
        parent = start.stem.partition("-")[2]
        lines = [_lines(folder / f"{parent}-{rank}.ids") for rank in range(ranks)]
        whole = min(len(mine) for mine in lines) // passes
        taken = [[line for mine in lines for line in mine[step * passes : (step + 1) * passes]] for step in range(whole)]
        steps += [Counter(i for line in step for i in line) for step in taken]
    return steps


def _lines(path: Path) -> list[list[int]]:
    return [[int(i) for i in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


def lost_or_repeated(steps: list[Counter[int]], size: int, batch: int) -> int:
    """How many samples, over the epochs that `steps` make up, were not seen exactly once each."""
    stream = [i for step in steps for i in sorted(step.elements())]
    per_epoch = size // batch
    wrong = 0
    for epoch in range(len(steps) // per_epoch):
        seen = sum(steps[epoch * per_epoch : (epoch + 1) * per_epoch], Counter[int]())
        wrong += sum(abs(seen[i] - 1) for i in range(size))
    return wrong + len(stream) % size
