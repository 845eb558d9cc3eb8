"""The device of a process: the CPU, or a GPU that torch can use."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from harness.config.errors import UserError
from harness.plan.world import DEVICE, cpu_requested

_GPU_NAME = re.compile(r"\s*([0-9]|GPU-|MIG-)")
"""Matches values of CUDA_VISIBLE_DEVICES that leave a GPU visible."""


def use_cpu(environ: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether this process computes on the CPU: because that was asked for, or because the machine has no GPU.

    Raises UserError if the process was planned for a GPU, or its machine has one (a device file in `devices`) that is not
    hidden, and torch cannot use it: such a rank would train on the CPU in silence, or wait for others that use NCCL.
    """
    planned, requested = environ.get(DEVICE) == "gpu", cpu_requested(environ)
    if planned and requested:
        raise UserError("world", "planned for GPUs, but ACCELERATE_USE_CPU asks for the CPU", "unset it, or plan with --gpus 0")
    if requested or torch.cuda.is_available():
        return requested
    visible = _GPU_NAME.match(environ.get("CUDA_VISIBLE_DEVICES", "0")) is not None
    if not planned and not (visible and any(devices.glob("nvidia[0-9]*"))):
        return True
    at = f"{'planned for GPUs' if planned else 'this machine has GPUs'}, but torch {torch.__version__} cannot use one"
    remedy = "install a build of torch for this driver, or ask for the CPU: --gpus 0, or ACCELERATE_USE_CPU=true"
    raise UserError("world", f"{at} on {os.uname().nodename}: {_cuda_problem()}", remedy)


def device_name(device: torch.device) -> str:
    """The GPU's product name; empty for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _cuda_problem() -> str:
    """Why torch cannot use a GPU, in its own words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as e:
        return str(e).strip().splitlines()[0].rstrip(".")
    return "it finds none"
