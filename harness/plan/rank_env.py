"""Which rank this process is: decided once from the environment, and then written there for torch, accelerate and DeepSpeed too.

They look at different variables (accelerate, for CPU ranks, at PMI_SIZE before WORLD_SIZE, and takes LOCAL_RANK alone for one of
several), so that what an earlier job left there makes one of them wait for ranks that nobody starts. What does not fit together
is refused.
"""

from collections.abc import Iterable, Mapping, MutableMapping

from harness.config.errors import UserError
from harness.plan.slurm_env import NEEDED, variables
from harness.plan.world import Place, place

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""The variables of Open MPI, MVAPICH and MPICH (Intel MPI) with the meaning of the four in OURS."""
_ALL = (*OURS, "LOCAL_SIZE", *(name for names in MPI for name in names))
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"


def settle(environ: MutableMapping[str, str]) -> Place:
    """This process's place under any launcher; `environ` then says the same to every library. Raises UserError."""
    told = _told(environ)
    here = place(told)
    if here.size > 1:
        missing = [name for name in MEETING if not told.get(name)]
        if missing:
            raise UserError(
                " ".join(missing),
                f"missing, and this is rank {here.rank} of {here.size}",
                "set it on all ranks to the host of rank 0 and a free port there, or start them with torchrun",
            )
        if not (told["MASTER_PORT"].isdecimal() and 0 < int(told["MASTER_PORT"]) < 65536):
            raise UserError("MASTER_PORT", f"is {told['MASTER_PORT']!r}", "give a free port of rank 0's host, such as 29500")
        told.setdefault("LOCAL_WORLD_SIZE", str(here.size))  # as `place` reads it; accelerate would write 1
    _write(environ, {name: told[name] for name in (*OURS, *MEETING) if name in told} if here.size > 1 else {})
    return here


def alone(environ: MutableMapping[str, str]) -> str:
    """Make `environ` that of a single process without a launcher. Returns what had been left over there, as text, or nothing.

    Raises UserError if it says, whole and clear, that this is one of several ranks: each of them would train alone.
    """
    for names in (OURS, *MPI):
        _check_mine(environ, names)
    slurm = variables({k: v for k, v in environ.items() if k not in _ALL}) if all(map(environ.get, NEEDED)) else {}
    if tasks := slurm.get("WORLD_SIZE"):
        at = f"is {tasks}: srun started so many tasks, and each would train alone"
        raise UserError(
            "SLURM_STEP_NUM_TASKS", at, f"use `srun -n {tasks} python -m harness RUN.yaml`; for one process, unset SLURM_STEP_ID"
        )
    left = {name: environ[name] for name in _ALL if name in environ}
    _write(environ, {})
    telling = [
        f"{name}={value}" for name, value in left.items() if value not in ("", "1" if name.endswith(("SIZE", "NRANKS")) else "0")
    ]
    return f"{' '.join(telling)} in the environment: left over from elsewhere, and ignored by a single process" if telling else ""


def _check_mine(environ: Mapping[str, str], names: tuple[str, ...]) -> None:
    """Raise UserError where the variables `names` say, whole, that this is one of several ranks."""
    rank, size = (_number(environ.get(name, "")) for name in names[:2])
    whole = names != OURS or all(environ.get(name) for name in MEETING)
    if rank is not None and size is not None and size > 1 and whole:
        at = f"say that this is rank {rank} of {size}, but `widebatch train` is one process"
        raise UserError(" ".join(names[:2]), at, f"unset {names[0]} {names[1]}, or start all ranks as `python -m harness RUN.yaml`")


def _told(environ: Mapping[str, str]) -> dict[str, str]:
    """The values of the variables OURS and MEETING under the launcher in use; empty for a single process. Raises UserError."""
    told = {name: environ[name] for name in (*OURS, *MEETING) if environ.get(name)}
    if environ.get("LOCAL_SIZE"):  # as deepspeed calls it
        told.setdefault("LOCAL_WORLD_SIZE", environ["LOCAL_SIZE"])
    if "RANK" in told:
        _whole(told, OURS[:3], "this process's rank is given")
        return told
    if given := _of_mpi(environ):
        return given | {name: told[name] for name in MEETING if name in told}
    if step := variables(environ):
        return step
    _check_half(environ, told)
    return {}


def _of_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """The values of the variables OURS under an mpirun that started several processes; else empty. Raises UserError."""
    for names in MPI:
        given = {ours: environ[name] for ours, name in zip(OURS, names, strict=True) if environ.get(name)}
        if "RANK" in given and given.get("WORLD_SIZE", "1") not in ("1", environ.get("SLURM_STEP_NUM_TASKS")):
            _whole({name: environ.get(name, "") for name in names}, names, "mpirun started this process")
            return given
    return {}


def _check_half(environ: Mapping[str, str], told: Mapping[str, str]) -> None:
    """Raise UserError where a world of several ranks is given, and not this process's rank in it."""
    here = [name for name in _ALL if name in environ]
    for names in (OURS, *MPI):
        size, rank = environ.get(names[1]), environ.get(names[0])
        if size not in (None, "", "1") and not rank:
            raise _half([names[0]], f"{names[1]} is {size}", here)
    if told.get("LOCAL_RANK", "0") not in ("0", "-1"):
        raise _half(["RANK", "WORLD_SIZE"], f"LOCAL_RANK is {told['LOCAL_RANK']}", here)


def _whole(told: Mapping[str, str], names: Iterable[str], why: str) -> None:
    """Raise UserError where one of the variables is missing, in a world of several ranks."""
    names = list(names)
    missing = [name for name in names if not told.get(name)]
    size = told.get(names[1], "")
    if missing and not (size == "1" and told.get(names[0]) == "0"):
        raise _half(missing, why, [name for name in names if told.get(name)])


def _half(missing: list[str], why: str, given: list[str]) -> UserError:
    """The UserError for an environment in which only some of the variables are set."""
    remedy = f"start the ranks by torchrun, accelerate launch, srun or mpirun, or, for one process, unset {' '.join(given)}"
    return UserError(" ".join(missing), f"missing, though {why}", remedy)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _write(environ: MutableMapping[str, str], told: Mapping[str, str]) -> None:
    """Replace all variables about ranks in the environment by `told`."""
    for name in (*_ALL, *(() if told else (_AGENT,))):
        environ.pop(name, None)
    environ.update(told)


def without_ranks(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child process, without this process's variables of ranks and of Slurm's step."""
    return {name: value for name, value in environ.items() if name not in (*_ALL, _AGENT, "SLURM_STEP_ID")}
