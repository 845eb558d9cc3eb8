"""A loss that gathers over ranks: the loss of the whole batch, on equal rows; what would give it others is refused in words."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.recipes.gathers import check_gathers
from harness.supervision.fault_detection import Fault
from harness.supervision.launch_env import Launched, memory_files
from harness.telemetry.events import Noticed
from harness.tools.verify import verify
from harness.training.loop import train
from launch.processes.supervisor import log_sizes, words_of
from tests.dist.workers.gathering import run, tree
from tests.support.processes import run_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks give."""
    out = tmp_path_factory.mktemp("gathering") / "found.json"
    run_ranks(2, ["tests.dist.workers.gathering", str(out)], out.parent)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("backend", ["ddp", "fsdp", "zero3"])
def test_ranks_that_gather_compute_the_loss_of_the_whole_batch(ranks: dict[str, Any], backend: str) -> None:
    found, alone = ranks[f"{backend} Said"], run("Silent")
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["notices"] == [
        "the loss gathers over ranks: evaluations leave out the last 4 of 20 rows, which do not split evenly"
    ]
    assert len(found["eval"]) == 1


def test_so_is_one_that_gathers_by_the_functions_that_compiled_code_uses(ranks: dict[str, Any]) -> None:
    assert ranks["fsdp Functional"]["error"].startswith("recipe.use: loss() or the model communicates between ranks")


@pytest.mark.parametrize("backend", ["ddp", "fsdp", "zero3"])
def test_a_loss_that_gathers_and_does_not_say_so_is_refused_before_the_first_step(ranks: dict[str, Any], backend: str) -> None:
    """What a backend that shards the weights gathers is not the recipe's."""
    assert len(ranks[f"{backend} Apart"]["losses"]) == 2
    assert ranks[f"{backend} Silent"] == {
        "error": "recipe.use: loss() or the model communicates between ranks, which hang where one of them has fewer rows or none; "
        "set `gathers = True` in the recipe: each pass then has equally many rows on every rank"
    }


def world(processes: int, simulated: int | None = None) -> World:
    return World(simulated or processes, 1, "cpu", processes)


@pytest.mark.parametrize(
    ("sections", "where", "valid", "line"),
    [
        ({}, world(1, 2), 0, "--simulate-world: is 2, and the loss gathers over ranks: simulated ranks cannot gather"),
        (
            {"batch": {"reference": 8, "total": 8, "micro": 2}},
            world(2),
            0,
            "batch.micro: is 2, .* 2 passes, .* to 4",
        ),
        ({"schedule": {"samples": 20}}, world(2), 0, r"schedule.samples: are 20 in all: the last step has 4, .* write 16 or 24"),
        ({"eval": {"sharpness": 8}}, world(2), 0, "eval.sharpness: is asked for"),
        ({}, world(2), 7, "recipe.use: has 7 validation rows, fewer than one pass of 4 on each of 2 ranks"),
        (
            {"batch": {"reference": 8, "total": 8, "grow": "ramp", "ramp_start": 4, "ramp_increment": 4, "ramp_samples": 8}},
            world(2),
            0,
            "batch.grow: changes the batch",
        ),
    ],
)
def test_what_would_give_ranks_unequal_rows_or_another_loss_is_refused(
    sections: dict[str, Any], where: World, valid: int, line: str
) -> None:
    config = decode(tree("Said", **sections))
    with pytest.raises(UserError, match=line):
        check_gathers(load_recipe(config.recipe), config, plan(config, where), valid)
    silent = decode(tree("Silent", **sections))
    assert check_gathers(load_recipe(silent.recipe), silent, plan(silent, where), valid) == []


def test_simulated_ranks_that_ask_for_others_are_told_so() -> None:
    """Their loss is another one: each has its own rows alone."""
    config, alone = decode(tree("Silent")), decode(tree("Apart"))
    said = [[e.message for e in train(c, plan(c, world(1, 2)), cpu=True) if isinstance(e, Noticed)] for c in (config, alone)]
    asks = [line for line in said[0] if "and cannot gather" in line]
    assert len(asks) == 1
    assert asks[0].startswith("the recipe calls is_initialized() of torch.distributed or accelerate")
    assert not any("and cannot gather" in line for line in said[1])


def test_one_process_cannot_verify_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its loss gathers over ranks, so one process cannot compute it"):
        verify(decode(tree("Said")), world(1), cpu=True)


def test_a_sample_that_cannot_be_read_ends_a_run_that_gathers() -> None:
    broken = tree("Said")
    broken["recipe"]["broken"] = 3
    with pytest.raises(UserError, match=r"samples 3 cannot be read \(OSError: torn\), and the loss gathers over ranks"):
        list(run_to_end(broken))


def run_to_end(tree: dict[str, Any]) -> Any:
    config = decode(tree)
    return train(config, plan(config, world(1)), cpu=True)


def test_the_terminal_quotes_what_a_rank_said_before_it_died(tmp_path: Path) -> None:
    """gloo ends the process of a rank that gathers rows of another size: there is no traceback, and others lose a peer."""
    told = Launched(os.getpid(), str(tmp_path), "", errors=memory_files(2))
    told.log(1).write_text("Error of an earlier start\n")
    before = log_sizes(told, 2)
    with told.log(1).open("a") as log:
        log.write("terminate called after throwing an instance of 'gloo::EnforceNotMet'\n  what(): 32 vs 16\n")
    said = words_of(Fault("lost", 1, 6, "aborted (SIGABRT), as happens when a rank loses its peers,"), told, before)
    assert said.splitlines() == [
        "rank 1 said last:",
        "  terminate called after throwing an instance of 'gloo::EnforceNotMet'",
        "    what(): 32 vs 16",
    ]
    told.error(1).write_text("Traceback\n")
    assert words_of(Fault("failed", 1, 6, "failed"), told, before) == "Traceback\n"
    assert words_of(Fault("lost", 0, 6, "aborted"), told, before) == ""
