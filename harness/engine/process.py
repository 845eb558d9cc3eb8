"""This process among the ranks that train one model: its device, its rank, and sums over all ranks."""

from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.engine.interface import DTYPES
from harness.plan.plan import Plan


@final
@dataclass
class Process:
    """One rank of `ranks`, both of which change where others are lost. `dtype` is the type of the weights and of the data."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    rank: int
    ranks: int

    def reduce(self, sums: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.ranks > 1:
            dist.all_reduce(sums)
        return sums


def join_alone(device: torch.device) -> None:
    """Make a process group of this process alone, where there is none: some libraries want one."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]


def open_process(config: Config, plan: Plan, *, cpu: bool) -> Process:
    """This process, as Accelerate finds it. Raises UserError if the plan is for another number of processes."""
    state = PartialState(cpu=cpu)
    if state.num_processes != plan.processes:
        at = f"the plan is for {plan.processes} processes, but {state.num_processes} were started"
        raise UserError("world", at, "start as many processes as the plan says, or plan for as many as you start")
    return Process(config, state.device, DTYPES[config.precision], state.process_index, state.num_processes)
