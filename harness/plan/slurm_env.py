"""The environment of a task that `srun` started: Slurm's variables -> those of torchrun. Pure; no launcher in between."""

import re
from collections.abc import Mapping

from harness.config.errors import UserError

PORTS = range(20000, 30000)
"""Where the first task's store listens: by the number of the job and its step, below the ports that the kernel hands out."""

NEEDED = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST")
"""The variables that srun sets for each task of a step."""


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to the environment of a task of a step; none if another launcher has set them, or for a single task.

    Slurm gives a task its rank, but no address: that of the first node of the step is taken, which its peers resolve. A task
    that sees one GPU (--gpus-per-task) calls it 0. Raises UserError if nodes hold unequal numbers of tasks, and where half
    of srun's variables are there.
    """
    if "RANK" in environ or "SLURM_STEP_ID" not in environ or environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing:
        at = f"missing, though SLURM_STEP_NUM_TASKS is {environ['SLURM_STEP_NUM_TASKS']}"
        raise UserError(" ".join(missing), at, "start the ranks by srun, or, for one process, unset SLURM_STEP_ID")
    per_node = _per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    alone = len(environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    port = PORTS[(int(environ["SLURM_JOB_ID"]) * 7 + int(environ["SLURM_STEP_ID"])) % len(PORTS)]
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": "0" if alone else environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(per_node),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(port),
    }


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `gpu[07-09,12],login1` -> `gpu07`."""
    head = re.match(r"[^,\[]*(\[[^\]]*\][^,\[]*)*", nodes)
    text = head.group() if head else nodes
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", text)


def _per_node(text: str) -> int:
    """Tasks on each node, of Slurm's `2(x3)` or `4`; UserError for `2(x3),1`."""
    found = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
    if found is None:
        raise UserError("srun", f"gives nodes unequal numbers of tasks ({text})", "use --ntasks-per-node")
    return int(found.group(1))
