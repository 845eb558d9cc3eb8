"""Python runs this at its start where tests put the folder on PYTHONPATH."""

from tests.support.faults import calls, clock

calls.from_environment()
clock.from_environment()
