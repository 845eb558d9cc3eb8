"""What `make check` makes of pip-audit's report."""

from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from tests.support.audit import bounds, judge

RAISE = "raise its pin in constraints.txt, and its bound in pyproject.toml"


def report(fixes: list[str], aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    """One vulnerable package among others, in pip-audit's form."""
    vulnerable = {"id": "PYSEC-1", "aliases": list(aliases), "fix_versions": fixes, "description": ""}
    return {
        "dependencies": [
            {"name": "rich", "version": "15.0.0", "vulns": []},
            {"name": "Torch", "version": "2.13.0", "vulns": [vulnerable]},
            {"name": "unknown", "skip_reason": "not found"},
        ],
        "fixes": [],
    }


@pytest.mark.parametrize(
    ("fixes", "accepted", "failures", "told"),
    [
        (["3.0", "2.13.1"], {}, [f"Torch 2.13.0 has PYSEC-1, repaired in 2.13.1: {RAISE}"], []),
        (["3.0"], {}, [], ["Torch 2.13.0 has PYSEC-1, repaired only out of bounds, in 3.0"]),
        ([], {}, [], ["Torch 2.13.0 has PYSEC-1, repaired in no release yet"]),
        (["2.13.1"], {"CVE-2": "not used"}, [], ["Torch 2.13.0 has PYSEC-1, accepted: not used"]),
    ],
)  # fmt: skip
def test_what_can_be_mended_fails_and_the_rest_is_told(
    fixes: list[str], accepted: dict[str, str], failures: list[str], told: list[str]
) -> None:
    assert judge(report(fixes, ("CVE-2",)), {"torch": SpecifierSet(">=2.9,<2.14")}, accepted) == (failures, told, 2)


def test_the_bounds_are_those_of_the_project() -> None:
    found = bounds()
    assert "2.13.0" in found["torch"]
    assert "2.14" not in found["torch"]
    assert "15.0.0" in found["rich"]
