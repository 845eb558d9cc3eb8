"""Software, device and hosts of a run: an explicit list of values, so that nothing else of a user's environment is recorded."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("widebatch", "accelerate", "deepspeed")


def environment(torch: str, device: str, hosts: Sequence[str]) -> dict[str, Any]:
    """Versions, the device's name and the names of the hosts, one for each rank, each reported once.

    `torch` is torch.__version__, which tells its build (2.13.0+cu130); what is installed under that name need not.
    """
    return {
        "python": platform.python_version(),
        "torch": torch,
        **{name: found for name in _PACKAGES if (found := _version(name))},
        "system": platform.platform(),
        "device": device or _processor(),
        "cpus": os.cpu_count(),
        "hosts": list(dict.fromkeys(hosts)),
    }


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def _processor() -> str:
    """What /proc calls the processor, empty if it does not say."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return ""
