"""How a process learns its place from the variables of whatever started it."""

import pytest

from harness.plan.errors import UserError
from harness.plan.srun import first_host, variables
from harness.plan.world import Place, check_world, place

STEP = {
    "SLURM_JOB_ID": "31", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)", "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Place(0, 0, 1, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, Place(3, 3, 8, 2)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_SIZE": "4"}, Place(3, 3, 8, 2)),
        (STEP, Place(5, 1, 8, 4)),
        (STEP | {"CUDA_VISIBLE_DEVICES": "3"}, Place(5, 0, 8, 4)),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1"}, Place(5, 1, 8, 4)),
        (STEP | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, Place(0, 0, 2, 1)),
        ({"SLURM_JOB_ID": "31", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Place(0, 0, 1, 1)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Place(0, 0, 1, 1)),
    ],
    ids=["nobody", "torchrun", "deepspeed", "srun", "srun, a GPU per task", "srun, all GPUs", "torchrun in srun", "batch", "one"],
)
def test_place_by_the_variables_of_each_launcher(environ: dict[str, str], expected: Place) -> None:
    assert place(environ | variables(environ)) == expected


def test_an_srun_task_is_told_where_the_first_task_listens() -> None:
    told = variables(STEP)
    assert told["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(told["MASTER_PORT"]) < 30000
    assert variables(STEP | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != told["MASTER_PORT"], "two steps of a job do not meet"
    assert variables(STEP | {"MASTER_ADDR": "10.0.0.1"})["MASTER_ADDR"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-4]", "n1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("a,b[1-2]", "a"),
        ("r[2,4]n[01-16]", "r2n01"),
        ("x-1", "x-1"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_unequal_nodes_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="ntasks-per-node"):
        variables(STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"})


@pytest.mark.parametrize(
    ("expected", "fine"), [("8", True), ("4:8", True), ("8:16", True), ("4", False), ("9:16", False), ("1:7", False)]
)
def test_a_world_that_was_not_planned_is_refused(expected: str, fine: bool) -> None:
    here = Place(0, 0, 8, 2)
    if fine:
        check_world(here, expected)
        return
    with pytest.raises(UserError, match="finds 8"):
        check_world(here, expected)
