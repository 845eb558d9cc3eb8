"""The code's structure stays readable: shallow classes, few parameters, short functions."""

import re
import statistics

from tests.support.processes import ROOT
from tests.support.structure import COMPLEX_BRANCHES, MANY_PARAMETERS, depth, functions, subclasses

MOST_BRANCHES = 15
IN_THE_LOOP = tuple(f"harness/{room}/" for room in ("training", "engine", "telemetry", "data", "checkpoint", "modeling"))

LEFT_BEHIND = re.compile(
    r"\b(ghosts?(?! batch norm)|wished|anew|doomed|noticer|goes on with|Teller|Moved|CarriedEngine|CopyEngine|SoloEngine)\b"
)
"""Words of earlier versions; the glossary in harness/README.md has those that took their place."""


def test_engines_and_their_strategies_are_at_most_two_deep() -> None:
    below = subclasses()
    assert depth("Gradients", below) == 1, "each way to reduce gradients is a class of its own"
    assert {name: found for name in ("Engine", "Passes", "StepOwner", "State", "Layout") if (found := depth(name, below)) > 2} == {}


def test_functions_stay_short_and_take_few_parameters() -> None:
    every = list(functions())
    lines = sorted(f.lines for f in every)
    assert statistics.median(lines) <= 6
    assert lines[len(lines) * 9 // 10] <= 19
    assert len([f for f in every if f.parameters >= MANY_PARAMETERS]) <= 20


def test_no_function_has_very_many_branches() -> None:
    assert [f for f in functions() if f.branches > MOST_BRANCHES] == []


def test_no_function_that_the_loop_calls_has_many_branches() -> None:
    assert [f for f in functions() if f.place.startswith(IN_THE_LOOP) and f.branches > COMPLEX_BRANCHES] == []


def test_code_and_comments_use_the_words_of_the_glossary() -> None:
    files = [*ROOT.glob("harness/**/*.py"), *ROOT.glob("launch/**/*.py")]
    assert {str(f.relative_to(ROOT)): found for f in files if (found := LEFT_BEHIND.findall(f.read_text()))} == {}


def test_the_root_readme_stays_a_face() -> None:
    assert 150 <= len((ROOT / "README.md").read_text().splitlines()) <= 220
