"""The code's structure stays readable: shallow classes, few parameters, short functions."""

import statistics

from tests.support.structure import COMPLEX_BRANCHES, MANY_PARAMETERS, depth, functions, subclasses

MOST_BRANCHES = 15
IN_THE_LOOP = tuple(f"harness/{room}/" for room in ("training", "engine", "telemetry", "data", "checkpoint", "modeling"))


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
