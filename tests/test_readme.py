"""The README keeps its word: every command in it runs, every number in it is the recorded one."""

import json
import os
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest

from tests.bench_lab import MARKS, shown
from tests.bench_launch import KINDS
from tests.bench_launch import markdown as launch_table
from tests.dist.processes import ROOT, run_command
from tests.soak_hosts import words as lost_hosts

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the run files, the Makefile's tree, and the files that the README tells one to write."""
    here = tmp_path_factory.mktemp("readme")
    (here / "configs").symlink_to(ROOT / "configs")
    for kind, text in BLOCKS:
        if kind in ("python", "yaml"):
            (here / text.splitlines()[0].removeprefix("# ")).write_text(text)
    return here


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if command == "make test":
        assert "pytest" in run_command(["make", "-n", "test"], ROOT)
        return
    if command == "make demo":
        assert "launch configs/digits.yaml" in run_command(["make", "-n", "demo"], ROOT), "test_launch runs what it says"
        return
    output = run_command(["env", f"PATH={path}", "sh", "-c", command], folder)
    trains = re.search(r"widebatch (train|launch)|-m harness", command) and "--dry-run" not in command
    assert not trains or re.search(r"complete after|stop_after_steps after", output)


def test_the_own_loop_example_prints_the_plan_s_numbers(folder: Path) -> None:
    assert run_command([sys.executable, "own_loop.py"], folder).startswith("256 1 [0.02, 0.02")


def test_the_meters_beside_an_accelerate_loop_and_a_trainer_tell(folder: Path) -> None:
    assert re.match(r"noise scale \d+\.\d+ samples, 0 spikes", run_command([sys.executable, "own_meters.py"], folder))
    assert "'progress/samples': 2000.0" in run_command([sys.executable, "own_trainer.py"], folder)


def test_the_printed_plan_is_what_the_command_prints(folder: Path) -> None:
    command = next(c for c in COMMANDS if c.endswith("--gpus 8"))
    argv = shlex.split(command)
    output = run_command([str(Path(sys.executable).parent / argv[0]), *argv[1:]], folder)
    shown = README.partition("<!-- plan -->\n```text\n")[2].partition("```")[0]
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in output.splitlines()]


def test_the_table_of_rules_is_the_recorded_one() -> None:
    assert rules_table() in README


def test_the_table_of_memory_is_the_recorded_one() -> None:
    assert memory_table() in README


def test_the_sweeps_shown_are_the_recorded_ones() -> None:
    assert f"{MARKS[0]}\n{shown()}{MARKS[1]}" in README


def test_the_table_of_launches_is_the_recorded_one_and_every_loss_was_that_of_one_process() -> None:
    record = json.loads((ROOT / "configs" / "results" / "launch.json").read_text())
    assert launch_table(record) in README
    assert set(record["rows"]) == set(KINDS)
    assert max(row["worst"] for row in record["rows"].values()) < 1e-6
    told = record["preempted"]
    assert (told["samples_lost_or_repeated"], told["wandb_runs"], told["restarts_by_slurm"]) == (0, 1, 1)
    assert told["samples_at_stop_and_restart"][0] == told["samples_at_stop_and_restart"][1] > 0


def test_what_lost_hosts_cost_is_the_recorded_time() -> None:
    assert lost_hosts(json.loads((ROOT / "configs" / "results" / "hosts.json").read_text())) in " ".join(README.split())


def test_the_counts_of_damaged_checkpoints_are_the_recorded_ones() -> None:
    found = json.loads((ROOT / "configs" / "results" / "checkpoints.json").read_text())
    trials = {"corruptions": "", "full disks": "refused", "kills": "killed"}
    counts = [sum(r["number"] for r in found["rows"] if r["trials"] == what and kind in r["kind"]) for what, kind in trials.items()]
    text = "Of {:,} damaged\ncheckpoints, {:,} saves on a full disk and {:,} that were killed, none was taken for good".format(
        *counts
    )
    assert text in README
    assert found["failed"] == 0


def survival() -> str:
    """The README's sentences on configs/results/kills.json and sigterm.json."""
    kills, stops = (json.loads((ROOT / "configs" / "results" / f"{name}.json").read_text()) for name in ("kills", "sigterm"))
    total, unended, back = kills["total"], len(kills["failed"]), kills["restart"]
    assert total["orphans"] == total["steps missing"] == 0
    return (
        f"Of {total['kills']:,} kills of ranks, launching processes and launchers at random moments (`python -m tests.soak_kills`) "
        f"{total['bad resumes']} ended in a bad resume, and {total['samples lost or repeated']} samples were lost or repeated"
        + (f"; {unended} runs did not come to their end" if unended else "")
        + f". From a kill to the end of the next step it took {back['all_median_s']:.1f} s, at most {back['all_max_s']:.1f}, "
        f"of which {back['imports_median_s']:.1f} s are Python's imports"
        + f". Of {stops['count']} SIGTERMs, {stops['right']} left a checkpoint of the last step and no process "
        "(`python -m tests.soak_sigterm`)."
    )


def test_what_a_run_survives_is_what_was_recorded() -> None:
    assert survival() in " ".join(README.split())


def memory_table() -> str:
    """The README's table of configs/results/memory.json."""
    rows = json.loads((ROOT / "configs" / "results" / "memory.json").read_text())["rows"]
    columns = sorted({(row["precision"], row["ranks"]) for row in rows}, key=lambda c: (c[0] != "fp32", c[1]))
    ranks = [f"{precision}, {count} rank{'s' * (count > 1)}" for precision, count in columns]
    lines = ["| `backend.name` | " + " | ".join(ranks) + " |", "|---" * (len(ranks) + 1) + "|"]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        found = {(row["precision"], row["ranks"]): row["bytes_per_weight"] for row in rows if row["backend"] == backend}
        lines.append(f"| `{backend}` | " + " | ".join(f"{found[c]:.1f}" for c in columns) + " |")
    return "\n".join(lines)


def rules_table() -> str:
    """The README's table of configs/results/digits_rules.json."""
    rows = json.loads((ROOT / "configs" / "results" / "digits_rules.json").read_text())["rows"]
    ratios = sorted({row["k"] for row in rows})
    lines = ["| rule | " + " | ".join(f"k = {k}" for k in ratios) + " |", "|---" * (len(ratios) + 1) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        at = {row["k"]: row["accuracy_pct"] for row in rows if row["rule"] == rule}
        cells = [f"{statistics.mean(at[k]):.2f} ± {statistics.stdev(at[k]):.2f} %" for k in ratios]
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
