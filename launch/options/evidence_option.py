"""--from: what an earlier run measured, from its folder, its evidence.json or a report's JSON."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.plain_file import read_plain
from harness.config.run_folder import EVIDENCE, JOURNAL, RunFolder
from harness.config.schema import Config
from harness.config.validate import check
from harness.plan.evidence import Evidence, as_flags, from_json
from harness.plan.lr_law import QUANTITIES, LrLaw
from harness.plan.plan import plan
from harness.plan.world import World

MAX_BYTES = 50_000_000
REMEDY = f"give a run folder, its {EVIDENCE}, what `widebatch report --json` printed, or what `widebatch fit` wrote"


def add_from(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    what = "plan with what was measured there (noise scale, largest stable lr, a fit of lr): a run folder, or JSON of report or fit"
    parser.add_argument("--from", dest="measured", type=Path, metavar="RUN", help=what)


def measured_flags(
    measured: Path | None, run: Path, settings: Mapping[str, str], asked: Callable[[], tuple[Config, World]]
) -> dict[str, str]:
    """The flags `settings` of the run file `run`, and what was measured in their words; a law is for the run `asked`.

    Raises UserError.
    """
    if measured is None:
        return dict(settings)
    law = None if measured.is_dir() else _tree(measured).get("law")
    if law is not None:
        return {**settings, **_law_flags(check(LrLaw, law, prefix=f"{measured}: "), *asked(), settings)}
    return {**settings, **as_flags(find(measured), load(run, settings).optim.name, settings)}


def _law_flags(law: LrLaw, config: Config, world: World, given: Mapping[str, str]) -> dict[str, str]:
    """optim.lr such that the plan's lr is the law's, with the reason. Raises UserError."""
    if "optim.lr" in given:
        raise UserError("--optim.lr", f"is {given['optim.lr']}, and --from gives a law of lr", "give one of them")
    if law.optimizer != config.optim.name:
        at = f"its law is of {law.optimizer}, and the run file has optim.name: {config.optim.name}"
        raise UserError("--from", at, "fit runs with this optimizer")
    if set(law.ranges) != set(QUANTITIES) or not set(law.exponents) <= set(QUANTITIES):
        raise UserError("--from", f"its law is not of {', '.join(QUANTITIES)}", "write it again with widebatch fit")
    planned = plan(config, world)
    each = 1 if law.unit == "samples" else planned.sample_tokens
    if each is None:
        raise UserError("recipe.sample_tokens", "missing, and the law of --from is in tokens", "state it")
    size = config.recipe.parameters
    if size is None and "parameters" in law.exponents:
        raise UserError("recipe.parameters", "missing, and the law of --from needs it", "state it, such as 124M")
    here = {"batch": float(planned.global_batch * each), "horizon": float(planned.total_samples * each)}
    here["parameters"] = float(size or law.ranges["parameters"][0])
    reason = f"{law.reason(here)}: {law.lr(here):.4g} at batch {here['batch']:,.0f} and {here['horizon']:,.0f} {law.unit}"
    lr = config.optim.lr * law.lr(here) / planned.target_lr
    return {"optim.lr": repr(lr), "optim.lr_source": json.dumps(reason)}


def find(path: Path) -> Evidence:
    """The evidence at `path`. A run's own evidence.json goes before its journal. Raises UserError."""
    if not path.is_dir():
        return _read(path)
    measured = RunFolder(path).evidence
    own = _read(measured) if measured.is_file() else None
    told, why = _journal(path)
    if own is None and told is None:
        raise UserError("--from", why, "let it run longer, or give one at a larger batch")
    return own.over(told) if own else told or _read(measured)


def _journal(folder: Path) -> tuple[Evidence | None, str]:
    """The evidence in a run's journal, or why there is none."""
    from harness.analysis.journal_reader import story_of
    from harness.analysis.noise_evidence import evidence_of, nothing_known

    try:
        story = story_of(str(folder), RunFolder(folder).journal)
    except OSError as e:
        return None, f"{folder}: it holds no {EVIDENCE}, and its {JOURNAL} cannot be read ({e.strerror})"
    if story is None:
        return None, f"{folder}: no run has started in its {JOURNAL}"
    found = evidence_of([story])
    return found, "" if found else nothing_known(story)


def _read(path: Path) -> Evidence:
    tree = _tree(path)
    if "runs" in tree:
        found = tree.get("evidence")
        if not isinstance(found, dict):
            raise UserError(
                "--from", f"{path} is a report of runs without a measured noise scale", "run with watch.noise_scale: true"
            )
        tree = found
    return from_json(tree, str(path))


def _tree(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        tree = json.loads(read_plain(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError("--from", f"{path} cannot be read: {e}", REMEDY) from e
    if not isinstance(tree, dict):
        raise UserError("--from", f"{path} holds no evidence", REMEDY)
    return tree
