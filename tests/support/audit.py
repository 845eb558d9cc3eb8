"""Known vulnerabilities of the pinned packages: python -m tests.support.audit, a part of `make check`.

pip-audit asks the registry. Where it does not answer, that is said, and nothing is found to be well. A vulnerability that a release
within pyproject.toml's bounds has repaired fails the check; one that none has repaired yet, or only one out of bounds, is told.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that are lived with, by id, and why."""
LIMIT_S = 300


def bounds() -> dict[str, SpecifierSet]:
    """The releases that pyproject.toml allows, by package; what is not named there may be any."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    found: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, named):
        name = canonicalize_name(requirement.name)
        found[name] = found.get(name, SpecifierSet()) & requirement.specifier
    return found


def judge(
    report: Mapping[str, Any], allowed: Mapping[str, SpecifierSet], accepted: Mapping[str, str]
) -> tuple[list[str], list[str], int]:
    """(what must be repaired, what is only told, how many packages could be looked up) of pip-audit's JSON report."""
    failures, told, known = [], [], 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            continue
        known += 1
        name, version = package["name"], package["version"]
        within = allowed.get(canonicalize_name(name), SpecifierSet())
        for vulnerability in package["vulns"]:
            ids = [vulnerability["id"], *vulnerability.get("aliases", [])]
            text = f"{name} {version} has {ids[0]}"
            reason = next((accepted[i] for i in ids if i in accepted), None)
            repaired = vulnerability["fix_versions"]
            good = [fix for fix in repaired if within.contains(fix, prereleases=True)]
            if reason is not None:
                told.append(f"{text}, accepted: {reason}")
            elif good:
                failures.append(f"{text}, repaired in {good[0]}: raise its pin in constraints.txt, and its bound in pyproject.toml")
            else:
                told.append(
                    f"{text}, {f'repaired only out of bounds, in {repaired[0]}' if repaired else 'repaired in no release yet'}"
                )
    return failures, told, known


def ask(pins: Iterable[str]) -> dict[str, Any] | str:
    """pip-audit's report on pinned packages, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "pins.txt").write_text("\n".join(pins) + "\n")
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", "-r", str(path), *options],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {LIMIT_S} s"
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return found


def main() -> int:
    """Ask, judge, tell. One package is asked for first: where the registry does not know it, it answers for none."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    for some in ([pin for pin in pins if pin.startswith("numpy==")], pins):
        report = ask(some)
        failures, told, known = ([], [], 0) if isinstance(report, str) else judge(report, bounds(), ACCEPTED)
        if not known:
            why = report if isinstance(report, str) else report["dependencies"][0]["skip_reason"]
            print(f"audit skipped, nothing is known of {len(pins)} packages: the registry does not tell ({why})")
            return 0
    print(*(f"note: {text}" for text in told), *(f"error: {text}" for text in failures), sep="\n")
    print(f"audit: {known} of {len(pins)} packages looked up, {len(failures)} to fix, {len(told)} told")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
