"""How a process learns its place from the variables of whatever started it."""

import os

import pytest

from harness.config.errors import UserError
from harness.plan.rank_env import alone, settle
from harness.plan.slurm_env import first_host, variables
from harness.plan.world import ALONE, Place, check_world, place

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


RANK1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
MEET = {"MASTER_ADDR": "h", "MASTER_PORT": "29500"}
OMPI = {
    f"OMPI_COMM_WORLD_{name}": RANK1[ours] for name, ours in zip(("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"), RANK1, strict=False)
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("environ", "rank", "size"),
    [
        ({}, 0, 1),
        (MEET, 0, 1),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, 0, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1),
        ({"RANK": "", "WORLD_SIZE": ""}, 0, 1),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, 0, 1),
        (RANK1, 1, 2),
        ({name: value for name, value in RANK1.items() if name != "LOCAL_WORLD_SIZE"}, 1, 2),
        (RANK1 | OMPI | {"PMI_SIZE": "8", "PMI_RANK": "5"}, 1, 2),
        (OMPI | MEET, 1, 2),
        (PMI | MEET, 1, 2),
        (STEP, 5, 8),
        (STEP | {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "PMI_RANK": "5", "PMI_SIZE": "8"}, 5, 8),
        (STEP | OMPI | MEET, 1, 2),
    ],
)
def test_all_libraries_read_the_place_that_is_decided(
    environ: dict[str, str], rank: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was left over beside it."""
    there = dict(environ)
    here = settle(there)
    assert (here.rank, here.size) == (rank, size)
    assert place(there) == here
    assert settle(dict(there)) == here, "settled once is settled"
    assert accelerate_reads(there, monkeypatch) == (rank, size, size > 1)


def accelerate_reads(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, bool]:
    """(rank, size, whether it would join a group) as accelerate takes CPU ranks from an environment, where it writes them, too."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from accelerate.utils.environment import get_cpu_distributed_information

    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = get_cpu_distributed_information()
    _, kind = PartialState.__new__(PartialState)._prepare_backend(cpu=True)
    if found.world_size > 1:
        assert str(found.local_world_size) == environ["LOCAL_WORLD_SIZE"]
    return found.rank, found.world_size, kind == DistributedType.MULTI_CPU


HALVES = [
    ({"WORLD_SIZE": "8"}, "RANK: missing, though WORLD_SIZE is 8", "unset WORLD_SIZE"),
    ({"LOCAL_RANK": "1"}, "RANK WORLD_SIZE: missing, though LOCAL_RANK is 1", "unset LOCAL_RANK"),
    ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"} | MEET, "RANK: missing, though WORLD_SIZE is 2", "unset WORLD_SIZE LOCAL_RANK"),
    ({"RANK": "1"}, "WORLD_SIZE LOCAL_RANK: missing", "unset RANK"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR MASTER_PORT: missing", "torchrun"),
    (
        {"OMPI_COMM_WORLD_SIZE": "2"},
        "OMPI_COMM_WORLD_RANK: missing, though OMPI_COMM_WORLD_SIZE is 2",
        "unset OMPI_COMM_WORLD_SIZE",
    ),
    ({"PMI_SIZE": "2"}, "PMI_RANK: missing, though PMI_SIZE is 2", "unset PMI_SIZE"),
    ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "MPI_LOCALRANKID MPI_LOCALNRANKS: missing", "unset PMI_RANK PMI_SIZE"),
    (OMPI, "MASTER_ADDR MASTER_PORT: missing, and this is rank 1 of 2", "free port"),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "SLURM_JOB_ID SLURM_LOCALID", "unset SLURM_STEP_ID"),
    (RANK1 | {"RANK": "2"}, "RANK: is 2, and WORLD_SIZE is 2", "unset"),
    (RANK1 | {"RANK": "-1"}, "RANK: is '-1'", "unset RANK"),
    (RANK1 | {"WORLD_SIZE": "two"}, "WORLD_SIZE: is 'two'", "unset"),
    (RANK1 | {"LOCAL_RANK": "2"}, "LOCAL_RANK: is 2, and LOCAL_WORLD_SIZE is 2", "unset"),
    (RANK1 | {"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE: is 4, and WORLD_SIZE is 2", "unset"),
    (RANK1 | {"MASTER_PORT": "x"}, "MASTER_PORT: is 'x'", "free port"),
    (RANK1 | {"MASTER_PORT": "70000"}, "MASTER_PORT: is '70000'", "free port"),
]


@pytest.mark.parametrize(("environ", "problem", "remedy"), HALVES, ids=[", ".join(h[0]) + str(n) for n, h in enumerate(HALVES)])
def test_what_does_not_fit_together_is_named_at_once(environ: dict[str, str], problem: str, remedy: str) -> None:
    with pytest.raises(UserError) as raised:
        settle(dict(environ))
    assert problem in str(raised.value)
    assert remedy in raised.value.remedy


@pytest.mark.parametrize(
    "environ",
    [
        *(
            h[0]
            for h in HALVES
            if h[0].keys() & MEET.keys() <= {"RANK"} and "OMPI_COMM_WORLD_RANK" not in h[0] and "PMI_RANK" not in h[0]
        ),
        {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"} | MEET,
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | MEET,
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"},
    ],
)
def test_one_process_is_alone_whatever_was_left_over(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = dict(environ)
    said = alone(there)
    assert all(f"{name}={value}" in said for name, value in environ.items() if name == "WORLD_SIZE" and value not in ("", "1"))
    assert place(there) == ALONE
    assert accelerate_reads(there, monkeypatch) == (0, 1, False)


@pytest.mark.parametrize("environ", [RANK1, OMPI, PMI, RANK1 | {"LOCAL_RANK": "7"}])
def test_one_of_several_ranks_does_not_train_alone(environ: dict[str, str]) -> None:
    """torchrun, or mpirun, that starts `widebatch train` N times over: not N runs."""
    with pytest.raises(UserError, match=r"RANK \w*SIZE: say that this is rank 1 of 2, but .*; unset \w*RANK \w*SIZE, or start"):
        alone(dict(environ))


@pytest.mark.parametrize("left_over", [{}, {"RANK": "3"}, {"LOCAL_RANK": "1"}])
def test_a_task_of_srun_does_not_train_alone(left_over: dict[str, str]) -> None:
    """`srun -n 8 widebatch train` would train eight times."""
    with pytest.raises(
        UserError, match=r"SLURM_STEP_NUM_TASKS: is 8: .*; use `srun -n 8 python -m harness RUN.yaml`; for one process"
    ):
        alone(STEP | left_over)


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
