"""`widebatch fit` finds a law planted in journals and says what three runs cannot tell; `plan --from` uses it near by only."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis.power_fit import fit_loss
from launch.cli import main
from tests.support.journals import start, write

BATCHES, HORIZONS, SIZES = (64, 128, 256, 512), (100_000, 300_000, 1_000_000), (1e6, 4e6)
POWERS = {"batch": 0.5, "horizon": -0.32, "parameters": -0.25}
CRITICAL, FLOOR, DATA = 200.0, 1.5, 0.3


def best_lr(batch: float, horizon: float, size: float) -> float:
    """The planted law."""
    return float(0.1 * (batch / 64) ** 0.5 * (horizon / 1e5) ** -0.32 * (size / 1e6) ** -0.25)


def planted(folder: Path, *, settings: Any, rates: tuple[float, ...] = (0.25, 0.5, 1, 2, 4), noise: float = 0.002) -> Path:
    """Journals of runs at each setting, at rates around the best one."""
    draw = np.random.default_rng(0)
    for number, ((batch, horizon, size), factor) in enumerate(product(settings, rates)):
        lowest = FLOOR + 40 * (horizon / (1 + batch / CRITICAL)) ** -DATA
        off = math.log(factor) + draw.uniform(-0.2, 0.2)
        lr = best_lr(batch, horizon, size) * math.exp(off)
        first = start(batch=batch, lr=lr, total_samples=horizon, optimizer="adamw") | {"parameters": size}
        loss = lowest + 0.05 * off**2 + draw.normal(0, noise)
        last = {"step": 9, "samples": horizon}
        write(
            folder / f"r{number}",
            [first, last | {"event": "eval", "eval/loss": loss}, last | {"event": "end", "reason": "complete"}],
        )
    return folder


def fitted(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """(what the command wrote, what it said)."""
    assert main(["fit", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    return (json.loads(out.read_text()) if out.exists() else {}), said


def test_a_planted_law_is_found_with_its_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = list(product(BATCHES, HORIZONS, SIZES))
    found, said = fitted(planted(tmp_path / "runs", settings=settings), tmp_path / "fit.json", capsys)
    for name, power in POWERS.items():
        estimate = found["exponents"][name]
        assert estimate["value"] == pytest.approx(power, rel=0.1)
        assert estimate["low"] < power < estimate["high"]
    assert found["loss"]["power"]["value"] == pytest.approx(DATA, rel=0.1)
    assert found["loss"]["critical"]["value"] == pytest.approx(CRITICAL, rel=0.25)
    assert f"lr from {5 * len(settings)} runs: {len(settings)} of {len(settings)} settings" in said


def test_three_runs_cannot_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted(tmp_path / "runs", settings=[(64, 100_000, 1e6)], rates=(0.5, 1, 2))
    found, said = fitted(folder, tmp_path / "fit.json", capsys)
    assert found == {}
    assert said.count("cannot tell from 3 runs") == 2


def test_batches_and_horizons_that_change_together_cannot_be_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [(64 * 2**n, 100_000 * 2**n, 1e6) for n in range(6)]
    found, said = fitted(planted(tmp_path / "runs", settings=settings), tmp_path / "fit.json", capsys)
    assert found == {}
    assert "must vary independently" in said


def test_a_rate_that_is_best_at_the_end_of_those_tried_counts_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [(batch, 100_000, 1e6) for batch in (64, 128, 256, 512, 1024)]
    found, said = fitted(planted(tmp_path / "runs", settings=settings, rates=(2, 4, 8)), tmp_path / "fit.json", capsys)
    assert found == {}
    assert "0 of 5 settings" in said


@pytest.fixture
def law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A fit of lr over the batch, for AdamW."""
    fitted(planted(tmp_path / "runs", settings=[(b, 100_000, 1e6) for b in BATCHES]), tmp_path / "fit.json", capsys)
    return tmp_path / "fit.json"


def planned(law: Path, capsys: pytest.CaptureFixture[str], batch: int, *flags: str) -> tuple[int, str]:
    """(status, what `plan --from` says) at a global batch."""
    file = law.parent / "run.yaml"
    file.write_text("batch: {reference: 64}\noptim: {name: adamw, lr: 0.01}\nscaling: {rule: adam, warmup_samples: 0}\n")
    argv = [
        "plan",
        str(file),
        "--gpus",
        "1",
        "--json",
        "--from",
        str(law),
        "--batch.total",
        str(batch),
        "--schedule.samples",
        "100000",
    ]
    status = main([*argv, *flags])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_a_plan_takes_its_lr_from_the_law_and_says_so(law: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = planned(law, capsys, 256)
    assert status == 0
    tree = json.loads(text)
    assert tree["lr"] == pytest.approx(best_lr(256, 1e5, 1e6), rel=0.1)
    assert tree["sources"]["reference_lr"].startswith("fit of 20 runs: lr ~ batch^0.")
    assert "extrapolated" not in text


def test_a_plan_past_what_the_law_has_seen_says_so_and_far_past_it_is_refused(
    law: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "extrapolated by a factor of 4 in batch" in json.loads(planned(law, capsys, 2048)[1])["sources"]["reference_lr"]
    status, text = planned(law, capsys, 8192)
    assert status == 2
    assert "a factor of 16 outside of the fitted range" in text


@pytest.mark.parametrize(
    ("flags", "said"), [(("--optim.name", "sgd"), "its law is of adamw"), (("--optim.lr", "1"), "gives a law of lr")]
)
def test_a_law_of_another_optimizer_or_beside_a_given_lr_is_refused(
    law: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    status, text = planned(law, capsys, 256, *flags)
    assert status == 2
    assert said in text


def test_the_loss_needs_batches_on_both_sides_of_the_critical_one() -> None:
    rows = [(d, b, 1 + 30 * d**-0.3) for d in (1e4, 1e5, 1e6) for b in (1.0, 2.0, 4.0)]
    found = fit_loss(*zip(*rows, strict=True))
    assert isinstance(found, str)
    assert "one side" in found


def test_a_folder_without_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(tmp_path)]) == 2
    assert "hold no run" in capsys.readouterr().err


def table(folder: Path) -> list[dict[str, Any]]:
    """The planted runs as rows of an export: one more has crashed."""
    rows = []
    for journal in sorted(folder.rglob("events.jsonl")):
        first, evaluated, _ = (json.loads(line) for line in journal.read_text().splitlines())
        told = first["plan"]
        rows.append(
            {
                "Name": journal.parent.name,
                "State": "finished",
                "bs": told["global_batch"],
                "seen": told["total_samples"],
                "rate": told["lr"],
                "size": first["parameters"],
                "val_loss": evaluated["eval/loss"],
            }
        )
    return [*rows, rows[0] | {"Name": "lost", "State": "crashed", "val_loss": 0.0}]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_an_export_of_wandb_gives_the_law_that_the_journals_give(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = planted(tmp_path / "runs", settings=list(product(BATCHES, HORIZONS, SIZES)))
    of_journals, _ = fitted(folder, tmp_path / "fit.json", capsys)
    rows, file = table(folder), tmp_path / f"export.{kind}"
    if kind == "csv":
        cells = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        file.write_text("\n".join(",".join(f'"{cell}"' for cell in line) for line in cells) + "\n")
    else:
        nested = [
            {"name": r["Name"], "state": r["State"], "config": {k: r[k] for k in ("bs", "seen", "rate", "size")}}
            | {"summary": {"val_loss": r["val_loss"]}}
            for r in rows
        ]
        file.write_text(json.dumps(nested))
    columns = ["--columns", "batch=bs", "horizon=seen", "lr=rate", "parameters=size"]
    assert main(["fit", str(file), *columns, "--metric", "val_loss", "--out", str(tmp_path / "of_export.json")]) == 0
    found = json.loads((tmp_path / "of_export.json").read_text())
    for name, estimate in of_journals["exponents"].items():
        assert found["exponents"][name]["value"] == pytest.approx(estimate["value"], rel=1e-9)
    assert "lost left out: crashed, not finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("a,b\n1,2\n", [], "--columns: export.csv has no column 'plan.global_batch' for the batch; give batch=COLUMN, one of a, b"),
        ("a,b\n1,2\n", ["--columns", "batch"], "--columns: batch is not NAME=COLUMN; the names are batch, horizon"),
        ("a\n1\n", ["--columns", "batch=a", "horizon=a", "lr=a"], "--metric: export.csv has no column 'eval/loss'"),
        ("", [], "has no row"),
    ],
)
def test_an_export_that_lacks_something_is_refused_in_a_line(
    text: str, flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export.csv").write_text(text)
    assert main(["fit", str(tmp_path / "export.csv"), *flags]) == 2
    assert says in capsys.readouterr().err
