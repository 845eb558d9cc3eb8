"""What `make demo` shows of pip, whose part is simulated by a script: its errors, and all that it said where it fails."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environ, run_command

PYTHON = """#!/bin/sh
mkdir -p .venv/bin
ln -sf "$PWD/pip" .venv/bin/pip
printf '#!/bin/sh\\necho the demo\\n' > .venv/bin/widebatch
touch .venv/bin/python
chmod +x .venv/bin/widebatch
"""
PIP = """#!/bin/sh
for i in 1 2 3; do echo "WARNING: Retrying after connection broken" >&2; done
echo "Looking in indexes"
[ -z "$SAYS" ] || echo "$SAYS" >&2
exit $STATUS
"""


@pytest.mark.parametrize(
    ("status", "says", "shown"),
    [
        (0, "", ["the demo"]),
        (0, "ERROR: pip's resolver found a conflict", ["ERROR: pip's resolver found a conflict", "the demo"]),
        (
            1,
            "ERROR: No matching distribution found for torch",
            ["WARNING: Retrying", "ERROR: No matching distribution found for torch"],
        ),
    ],
)
def test_of_pip_only_errors_are_shown_and_all_where_it_fails(status: int, says: str, shown: list[str], tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    for name, text in (("python", PYTHON), ("pip", PIP)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = environ() | {"STATUS": str(status), "SAYS": says}
    done = subprocess.run(["make", "demo", "PYTHON=./python"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == (status == 0), output
    for part in shown:
        assert part in output
    assert ("the demo" in done.stdout) == (status == 0)
    if status == 0:
        assert "WARNING" not in output
        assert "Looking" not in output


def test_every_file_of_tests_is_collected() -> None:
    argv = ["-m", "pytest", "--collect-only", "-s", "-p", "tests.support.collected_files"]
    output = run_command([sys.executable, *argv], ROOT, status=pytest.ExitCode.NO_TESTS_COLLECTED)
    collected = {Path(line.removeprefix("FILE ")) for line in output.splitlines() if line.startswith("FILE ")}
    assert set((ROOT / "tests").rglob("test_*.py")) == collected
