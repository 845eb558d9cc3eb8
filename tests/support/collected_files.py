"""A plugin for pytest that names the files of tests and imports none: `pytest --collect-only -p tests.support.collected_files`."""

from collections.abc import Iterator
from pathlib import Path

import pytest


class Unread(pytest.File):
    """A file of tests, as if it had none."""

    def collect(self) -> Iterator[pytest.Item]:
        """Nothing."""
        return iter(())


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Unread:
    """What pytest would import is named."""
    print(f"FILE {module_path}")
    return Unread.from_parent(parent, path=module_path)
