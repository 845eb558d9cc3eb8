"""Wheels for a GPU machine that has torch, Python 3.12 and no network: `make gpu-wheels` fills build/gpu-wheels.

What the base install and pytest need, at the versions of constraints.txt, without torch and what torch brings.
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

OUT = ROOT / "build" / "gpu-wheels"
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
NAMES = ("widebatch", "pytest", "hatchling", "setuptools")
SOURCE_ONLY = ("deepspeed",)
"""These have no wheel; the one that is built here holds Python alone and fits any version."""


def needed(names: tuple[str, ...], without: str) -> dict[str, str]:
    """Version by name of what some distributions need that are installed here; not of `without` and of what it needs."""
    left_out = closure({without}, set())
    return {name: distribution(name).version for name in sorted(closure(set(names), left_out) - {"widebatch"})}


def closure(names: set[str], left_out: set[str]) -> set[str]:
    """Names with all that they need on this machine, as far as it is installed."""
    found, new = set[str](), {str(canonicalize_name(name)) for name in names} - left_out
    while new:
        found |= new
        new = {each for name in new for each in required(name)} - found - left_out
    return found


def required(name: str) -> set[str]:
    """What a distribution asks for without extras, where it is installed."""
    try:
        texts = distribution(name).requires or []
    except PackageNotFoundError:
        return set()
    wanted = [r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {canonicalize_name(r.name) for r in wanted if _installed(r.name)}


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def main() -> int:
    """Download and build; status 1 where pip fails."""
    OUT.mkdir(parents=True, exist_ok=True)
    versions = needed(NAMES, "torch")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    binary = [f"{name}=={version}" for name, version in versions.items() if name not in SOURCE_ONLY]
    download = [
        *pip,
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        PYTHON,
        *platforms,
        "--dest",
        str(OUT),
        *binary,
    ]
    source = [f"{name}=={versions[name]}" for name in SOURCE_ONLY]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(OUT), *source]
    for argv in (download, build):
        if subprocess.run(argv, check=False).returncode:
            return 1
    size = sum(path.stat().st_size for path in OUT.iterdir()) / 2**20
    print(f"{len(list(OUT.iterdir()))} wheels, {size:.0f} MiB, in {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
