"""Which samples a step of a run took, and which steps took a sample: by its journal and its order, on whatever ranks it ran."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.analysis.sample_ledger import Ledger, StepSpan, holding, read_ledger
from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.data.columns import Sourced
from harness.data.feed import Data
from harness.data.sample_order import SampleOrder
from harness.data.training_order import training_order
from harness.recipes.base import Recipe, load_recipe
from harness.recipes.contract import train_split
from harness.recipes.fingerprint import read

AT_ONCE = 256
"""How many samples are read at a time."""


def samples_of_steps(config: Config, folder: Path, steps: Sequence[int]) -> Iterator[str]:
    """Lines about the samples of a step; of several, about those that all of them have. Raises UserError."""
    ledger, recipe, data, order = _opened(config, folder)
    found = [_newest(ledger, step) for step in steps]
    yield from map(_told, found)
    common = set(order.take(found[0].start, found[0].stop).tolist())
    for span in found[1:]:
        common &= set(order.take(span.start, span.stop).tolist())
    ids = [number for number in order.take(found[0].start, found[0].stop).tolist() if number in common]
    if len(found) > 1:
        yield f"in all of them: {len(ids) or 'no'} samples"
    yield from _rows(recipe, data, ids, config.run.seed)


def steps_of_sample(config: Config, folder: Path, sample: int) -> Iterator[str]:
    """Lines about a sample, and each step that took it. Raises UserError."""
    ledger, recipe, data, order = _opened(config, folder)
    if not 0 <= sample < len(data):
        raise UserError("--sample", f"is {sample}, and the training data has {len(data):,}", f"give one from 0 to {len(data) - 1}")
    yield from _rows(recipe, data, [sample], config.run.seed)
    end = max((span.stop for span in ledger.steps), default=0)
    spans = list(holding(ledger.steps, order.positions(sample, end)))
    yield f"in {len(spans)} of {len(ledger.steps)} steps"
    yield from map(_told, spans)


def _opened(config: Config, folder: Path) -> tuple[Ledger, Recipe, Data, SampleOrder]:
    """Raises UserError if a folder has no journal, or the recipe's data is not that of the run."""
    try:
        ledger = read_ledger(RunFolder(folder).journal)
    except OSError as e:
        raise UserError("samples", f"{folder} has no journal ({e.strerror})", "give the folder that a run wrote") from e
    recipe = load_recipe(config.recipe)
    data = train_split(recipe, config.run.seed)
    if ledger.dataset not in (None, len(data)):
        at = f"has {len(data):,} training samples, and the run had {ledger.dataset:,}"
        raise UserError("recipe.use", at, "restore the data of that run")
    return ledger, recipe, data, training_order(data, config)


def _newest(ledger: Ledger, step: int) -> StepSpan:
    """The step of this number, as it was taken last. Raises UserError."""
    span = next((span for span in reversed(ledger.steps) if span.step == step), None)
    if span is None:
        last = max((span.step for span in ledger.steps), default=0)
        remedy = f"give one from 1 to {last}" if last else "let it train first"
        raise UserError("--step", f"is {step}, and the journal has no such step", remedy)
    return span


def _told(span: StepSpan) -> str:
    undone = ", undone by a roll-back or a restart" if span.undone else ""
    head = f"step {span.step}: positions {span.start:,} to {span.stop:,}, loss {span.loss:.6g}{undone}"
    return "\n".join([head, *(f"  {notice}" for notice in span.notices)])


def _rows(recipe: Recipe, data: Data, ids: Sequence[int], seed: int) -> Iterator[str]:
    """A line for each sample: its number, where it lies, what is in it."""
    for first in range(0, len(ids), AT_ONCE):
        part = ids[first : first + AT_ONCE]
        for number, sample in zip(part, read(recipe, data, part, seed), strict=True):
            row = sample[0] if isinstance(sample, list) else sample
            where = data.source(number) if isinstance(data, Sourced) else ""
            yield f"{number}{f' ({where})' if where else ''}: {recipe.preview(row)}"
