"""A run as a Slurm job: an sbatch script for people to read. Pure text; every name in it is matched whole first.

Slurm itself starts the workers, one task each: a signal reaches each of them once, nothing in between can orphan them, and a lost
node requeues the job. The workers find each other by `plan/slurm_env.py`. Slurm signals only the script that time is short, which
so knows that the job is to be requeued; any other stop (scancel, Stop in W&B) is the end.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from harness.config.allowed_names import checked
from harness.config.errors import UserError
from harness.config.run_folder import LOGS, RUN_FILE
from harness.plan.world import World
from launch.cluster.allowed_names import TIME, WORD, WORDS, checked_path
from launch.processes.command import device_environ

WAIT_S = 120
"""How long the other tasks may take to end after the first one: the time to write a last checkpoint and finish W&B."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the user may say about the job. Raises UserError for a name that is not one."""

    name: str
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: int | None = None
    signal_s: int = 120
    """Seconds before the time limit at which the workers are asked to save."""
    restarts: int = 3
    """How often failed workers are started again within the job."""
    interface: str | None = None
    """Network interface of the ranks' traffic."""
    tasks: int = 1
    """Runs of the job array; 1: no array."""
    at_once: int | None = None
    """How many of the array's runs may be going at the same time."""

    def __post_init__(self) -> None:
        word = "give letters, digits and . _ - only, 63 at most"
        checked("--job-name", self.name, WORD, word)
        for flag, value in (("--account", self.account), ("--qos", self.qos), ("--interface", self.interface)):
            if value is not None:
                checked(flag, value, WORD, word)
        if self.partition is not None:
            checked("--partition", self.partition, WORDS, "give one name, or several with commas between")
        if self.time is not None:
            checked("--time", self.time, TIME, "write minutes, hours:minutes:seconds or days-hours")
        for flag, number in (("--cpus-per-task", self.cpus_per_task), ("--at-once", self.at_once)):
            if number is not None and number < 1:
                raise UserError(flag, f"is {number}", "give at least 1")
        if not 10 <= self.signal_s <= 65535:
            raise UserError("--signal-s", f"is {self.signal_s}", "give 10 to 65535 seconds")


def sbatch_script(job: Job, world: World, folder: Path, python: str) -> str:
    """The script that runs `folder`'s run.yaml on `world`; of an array, task i runs that of `folder`/i."""
    run, name = checked_path("run.dir", folder), checked_path("python", Path(python))
    wanted = "/$SLURM_ARRAY_TASK_ID" if job.tasks > 1 else ""
    lines = [
        "#!/bin/bash",
        f"# {world.size} {'GPUs' if world.device == 'gpu' else 'CPU ranks'} on {world.nodes} nodes. Submit it with sbatch;"
        " it may be sent again at any time and resumes from the last checkpoint.",
        *(f"#SBATCH {line}" for line in _headers(job, world, run)),
        "",
        *_environment(job, world),
        f"run={run}{wanted}",
        "# Slurm tells this script when time is short. It tells the ranks, until they have saved, and queues the job again.",
        "again=no",
        "trap 'again=yes' USR1",
        "",
        f"for attempt in {' '.join(str(i) for i in range(job.restarts + 1))}; do",
        f"    srun --kill-on-bad-exit=0 --wait={WAIT_S}{_per_task(job)} \\",
        f'        {shlex.quote(name)} -m harness "$run/{RUN_FILE}" --no-plan --ranks {world.size} &',
        "    ranks=$! told=0",
        "    while kill -0 $ranks 2>/dev/null; do",
        '        if [ "$again" = no ]; then wait $ranks; continue; fi',
        "        case $((told++)) in",
        '        0) scancel --signal=USR1 "$SLURM_JOB_ID" ;;',
        '        *0) scancel --signal=HUP "$SLURM_JOB_ID" ;;  # a rank that was not up yet has not heard; this one may come twice',
        "        esac",
        "        sleep 1",
        "    done",
        "    wait $ranks; status=$?",
        "    case $status in",
        "    0 | 2 | 3 | 4) exit $status ;;  # complete, a mistake of the user, the guard, out of memory: not again",
        "    esac",
        '    if [ "$again" = yes ]; then',
        "        for _ in 1 2 3 4 5; do  # the controller may be busy",
        '            case "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" in',
        '            RUNNING) scontrol requeue "$SLURM_JOB_ID" && exit $status ;;',
        "            ?*) exit $status ;;  # cancelled meanwhile",
        "            esac",
        "            sleep 2",
        "        done",
        "        exit $status",
        "    fi",
        "    [ $status = 75 ] && exit $status  # stopped on request, with a checkpoint",
        '    echo "attempt $attempt ended with status $status"',
        "done",
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


def _headers(job: Job, world: World, run: str) -> list[str]:
    """The #SBATCH options. The log is appended to, so that a requeued job continues in it."""
    per_node = world.size // world.nodes
    array = job.tasks > 1
    limit = f"%{job.at_once}" if job.at_once else ""
    given = [("partition", job.partition), ("time", job.time), ("account", job.account), ("qos", job.qos)]
    return [
        f"--job-name={job.name}",
        f"--nodes={world.nodes}",
        f"--ntasks-per-node={per_node}",
        *([f"--gpus-per-node={per_node}"] if world.device == "gpu" else []),
        *([f"--cpus-per-task={job.cpus_per_task}"] if job.cpus_per_task else []),
        *(f"--{name}={value}" for name, value in given if value is not None),
        *([f"--array=0-{job.tasks - 1}{limit}"] if array else []),
        f"--output={run}/{f'%a/{LOGS}/slurm-%A_%a.log' if array else f'{LOGS}/slurm-%j.log'}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{job.signal_s}",
    ]


def _environment(job: Job, world: World) -> list[str]:
    return [
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        *(f"export {name}={value}" for name, value in device_environ(world).items()),
        *([f"export GLOO_SOCKET_IFNAME={job.interface} NCCL_SOCKET_IFNAME={job.interface}"] if job.interface else []),
    ]


def _per_task(job: Job) -> str:
    """srun does not take over --cpus-per-task from sbatch (since Slurm 22.05)."""
    return f" --cpus-per-task={job.cpus_per_task}" if job.cpus_per_task else ""
