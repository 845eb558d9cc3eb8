"""What is told of where a run computes."""

import os
import platform

import torch

from harness.telemetry.environment import environment


def test_versions_and_each_host_once_and_nothing_of_the_user_s_environment() -> None:
    found = environment(torch.__version__, "NVIDIA H200", ["a", "a", "b"])
    assert set(found) - {"deepspeed"} == {"python", "widebatch", "torch", "accelerate", "system", "device", "cpus", "hosts"}
    assert (found["python"], found["torch"]) == (platform.python_version(), torch.__version__)
    assert (found["device"], found["hosts"]) == ("NVIDIA H200", ["a", "b"])
    secrets = {value for name, value in os.environ.items() if "KEY" in name or "TOKEN" in name} - {""}
    assert not secrets & set(map(str, found.values()))
    assert isinstance(environment(torch.__version__, "", ["a"])["device"], str)
