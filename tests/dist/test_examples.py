"""Losses over all ranks, and two optimizers, by configs/examples: the same on one rank and on two, and moved between them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, run_ranks

EXAMPLES = ROOT / "configs" / "examples"


def paired(folder: Path, ranks: int, *options: str) -> list[dict[str, Any]]:
    """Train the two towers; all lines of the journal."""
    given = ["--watch.wandb=off", f"--run.dir={folder}", *options]
    run_ranks(ranks, ["harness", str(EXAMPLES / "pairs.yaml"), *given], ROOT)
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_two_towers_have_the_loss_of_the_whole_batch_on_two_ranks_and_on_the_one_that_goes_on(tmp_path: Path) -> None:
    alone = paired(tmp_path / "alone", 1)
    paired(tmp_path / "moved", 2, "--run.stop_after_steps=100")
    moved = paired(tmp_path / "moved", 1)
    losses = [[line["train/loss"] for line in lines if line["event"] == "step"] for lines in (alone, moved)]
    assert len(losses[0]) == 8 * 24
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1][:20] == pytest.approx(losses[0][:20], rel=1e-6)
    evaluated = [line["eval/accuracy_pct"] for line in moved if line["event"] == "eval"]
    assert evaluated[-1] > 15, "of 64 halves at once, by chance 1.6 %"


def adversaries(folder: Path, ranks: int, *options: str) -> list[float]:
    """Train the generator and the discriminator; both losses of each step."""
    printed = run_ranks(ranks, ["tests.dist.workers.script", str(EXAMPLES / "gan_run.py"), f"--folder={folder}", *options], ROOT)
    return [float(number) for pair in re.findall(r"discriminator ([\d.]+), generator ([\d.]+)", printed) for number in pair]


def test_two_optimizers_have_the_losses_of_one_process_on_two_ranks_and_on_the_one_that_goes_on(tmp_path: Path) -> None:
    alone = adversaries(tmp_path / "alone", 1)
    moved = adversaries(tmp_path / "moved", 2, "--steps=50") + adversaries(tmp_path / "moved", 1)
    assert len(alone) == 2 * 4 * 28
    assert moved == pytest.approx(alone, rel=1e-5)
    assert len({round(loss, 2) for loss in alone}) > 10
