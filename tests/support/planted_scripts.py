"""Training scripts in four styles, each with one bug planted, and what `verify -- COMMAND` finds in each."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from harness.analysis.equivalence import Finding
from harness.analysis.script_findings import StepSeen, judge_script
from tests.support.processes import ROOT, run_ranks

BUGS = {
    "own weights": ("weights", "begin from different weights"),
    "unsynced": ("gradients", "with its own gradients, not averaged"),
    "summed": ("gradients", "added up over the 2 ranks, not averaged"),
    "undivided": ("loss", "not divided by the 3 passes of a step"),
    "twice": ("loss", "divided by the 3 passes of a step twice"),
    "by ranks": ("loss", "divided by the 2 ranks, and the gradients again"),
    "unequal": ("items", "are averaged as equals"),
    "own rate": ("rate", "the ranks' rates differ"),
    "same samples": ("samples", "all ranks read the same samples"),
    "own shuffle": ("samples", "each shuffles on its own"),
    "own buffers": ("buffers", "the ranks' buffers differ"),
    "same dropout": ("dropout", "drop the same units"),
}
"""Each bug: (what is to differ, words of the sentence that names it)."""
CLEAN = {
    "accelerate": ("clean", "weighted", "fast schedule"),
    "trainer": ("clean", "weighted"),
    "lightning": ("clean", "weighted"),
    "deepspeed": ("clean", "weighted", "zero0", "zero2", "zero3"),
}
"""The variants without a bug, by style."""


def script_of(style: str) -> Path:
    """The script in a style; its first argument is the bug."""
    return ROOT / "tests" / "dist" / "workers" / f"planted_{style}.py"


def found_in(style: str, folder: Path) -> dict[str, list[Finding]]:
    """What is found in each variant: they run one after another in the same processes, on two ranks and then in one."""
    names = [*BUGS, *CLEAN[style]]
    for ranks in (2, 1):
        argv = ["tests.dist.workers.probed", str(folder / str(ranks)), str(script_of(style)), *names]
        run_ranks(ranks, argv, ROOT)
    return {name: judge_script(_read(folder / "2", name, 2), _read(folder / "1", name, 1)[0]) for name in names}


def _read(folder: Path, name: str, ranks: int) -> list[list[StepSeen]]:
    files = [folder / f"{name}-{rank}.json" for rank in range(ranks)]
    return [msgspec.convert(json.loads(file.read_text()), list[StepSeen]) for file in files]


def differing(found: Sequence[Finding]) -> dict[str, str]:
    """What differs, each with its sentence."""
    return {one.what: one.text for one in found if one.verdict == "differs"}
