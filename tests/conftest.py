"""What holds for every test: nothing fails because the machine is busy with other work, and none takes more of it than a core."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
torch.set_num_threads(1)  # two threads on a core spin while they wait for each other: small runs took thirty times their CPU time

LONGEST = (
    "test_readme.py", "test_backends.py", "test_wandb.py", "test_faults.py", "test_launch.py", "test_saving.py",
    "test_telemetry.py", "test_noise.py", "test_guarding.py", "test_layouts.py", "test_code.py", "test_kept_state.py",
)  # fmt: skip


def _launcher() -> dict[str, str]:
    """The variables by which a launcher tells a rank its place."""
    return {name: value for name, value in os.environ.items() if name.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))}


BEGAN = _launcher()


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """What a test leaves in the environment reaches no other: DeepSpeed's LOCAL_RANK made every later loop of Accelerate's fail.

    A fixture that several tests share comes before this one: it may not leave a launcher's variables at all.
    """
    before = dict(os.environ)
    assert _launcher() == BEGAN, "a shared fixture has made this process a rank: later loops would wait for others"
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, then those that start processes: no process of pytest-xdist ends minutes after the others."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), item.path.parent.name == "unit"))
