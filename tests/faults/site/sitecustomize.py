"""Python runs this at its start where tests put the folder on PYTHONPATH."""

from tests.faults.calls import from_environment

from_environment()
