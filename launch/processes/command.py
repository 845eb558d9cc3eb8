"""The inputs of other tools: the accelerate file, the environment and the argv. Pure, compared with golden files."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.config.run_folder import RunFolder
from harness.plan.plan import Plan
from harness.plan.world import DEVICE, World


@dataclass(frozen=True)
class Command:
    """A process to start: argv, and what it adds to the environment."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]

    def __str__(self) -> str:
        """The command as typed in a shell."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.environ.items()]
        return " ".join([*added, shlex.join(self.argv)])


def accelerate_file(plan: Plan, world: World) -> str:
    """The YAML for `accelerate launch --config_file`: one machine, nothing left to be guessed."""
    tree: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "MULTI_GPU" if plan.processes > 1 else "NO",
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "machine_rank": 0,
        "main_process_port": 0,
        "main_training_function": "main",
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": plan.processes,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": world.device == "cpu" and plan.processes == 1,
    }
    return yaml.safe_dump(tree, sort_keys=True)


def worker_command(
    python: str, folder: str, world: World, module: str = "harness", options: Sequence[str] = ("--no-plan",)
) -> Command:
    """`accelerate launch` of `module` for the run in `folder`, as modules of the interpreter `python`.

    Precision and the process group are the engine's, so accelerate gets "no" for both. For CPU ranks ACCELERATE_USE_CPU is what
    makes the N processes find each other over gloo; accelerate's own --cpu starts a single one.
    """
    run = RunFolder(Path(folder))
    argv = (
        python, "-m", "accelerate.commands.launch", "--config_file", str(run.accelerate),
        *(("--log_dir", str(run.torchrun_logs)) if world.size > 1 else ()), "-m", module, str(run.run_file), *options,
    )  # fmt: skip
    return Command(argv, device_environ(world))


def device_environ(world: World) -> dict[str, str]:
    """The environment that states the device that ranks were planned for: on another they refuse to start."""
    return {"ACCELERATE_USE_CPU": "true"} if world.device == "cpu" else {DEVICE: "gpu"}
