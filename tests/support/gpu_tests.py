"""`make test-gpu`: the tests that need a GPU, and one JSON of what each did, configs/results/gpu_tests.json."""

import json
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree  # of a file that pytest has just written

import pytest
import torch

from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "gpu_tests.json"


def outcomes(report: Path) -> dict[str, dict[str, object]]:
    """By test: passed, failed or skipped, and its seconds; from a JUnit file."""
    found: dict[str, dict[str, object]] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        found[f"{case.get('classname')}.{case.get('name')}"] = {"outcome": outcome, "s": round(float(case.get("time", 0)), 2)}
    return found


def main() -> int:
    """Run them and write the record. Status 2 where there is no GPU, else pytest's."""
    if not torch.cuda.is_available():
        print("error: there is no GPU here that torch can use", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status = int(pytest.main(["-m", "gpu", f"--junit-xml={report}", "tests"]))
        found = outcomes(report)
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    record = {"command": "make test-gpu", "when": when, "machine": machine() | about, "tests": found}
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
