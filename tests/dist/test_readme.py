"""The READMEs keep their word: every command in them runs, every number in them is the recorded one, every link leads somewhere."""

import json
import os
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest

from tests.bench import adam_rules, blocks, images, sources, tokens, verify_table
from tests.bench.lab import MARKS, shown
from tests.bench.launch import KINDS
from tests.bench.launch import markdown as launch_table
from tests.soak.hosts import words as lost_hosts
from tests.support import settings_page
from tests.support.planted_scripts import BUGS, CLEAN
from tests.support.processes import ROOT, run_command, run_ranks
from tests.support.readmes import COMMANDS, FILES, TEXT, write_examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the run files, the Makefile's tree, and the files that the READMEs tell one to write."""
    return write_examples(tmp_path_factory.mktemp("readme"))


RANKS = re.compile(r"widebatch (launch|verify) (?!.*--dry-run)|accelerate launch|torchrun")
"""Begins several ranks: `make test-base` runs these, as they are typed."""


@pytest.mark.parametrize("command", [command for command in COMMANDS if not RANKS.search(command)])
def test_every_command_runs(command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if command == "make test":
        assert "pytest" in run_command(["make", "-n", "test"], ROOT)
        return
    if command == "make demo":
        assert "launch configs/digits.yaml" in run_command(["make", "-n", "demo"], ROOT), "test_launch runs what it says"
        return
    program, *words = shlex.split(command)
    if program == "widebatch":
        output = run_ranks(1, ["launch", *words], folder)
    else:
        output = run_command(["env", f"PATH={path}", "sh", "-c", command], folder)
    trains = command.startswith(("widebatch train", "python -m harness"))
    assert not trains or re.search(r"complete after|stop_after_steps after", output)


@pytest.mark.parametrize("page", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_first_page_is_short() -> None:
    assert 150 <= len(FILES[0].read_text().splitlines()) <= 220


def test_the_page_of_settings_is_the_schema_s() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), "python -m tests.support.settings_page writes it again"


def test_the_own_loop_example_prints_the_plan_s_numbers(folder: Path) -> None:
    assert run_command([sys.executable, "own_loop.py"], folder).startswith("256 1 [0.02, 0.02")


def test_the_meters_beside_an_accelerate_loop_and_a_trainer_tell(folder: Path) -> None:
    assert re.match(r"noise scale \d+\.\d+ samples, 0 spikes", run_command([sys.executable, "own_meters.py"], folder))
    assert "'progress/samples': 2000.0" in run_command([sys.executable, "own_trainer.py"], folder)


def test_the_planned_trainer_tells(folder: Path) -> None:
    assert "'progress/samples': 2048.0" in run_command([sys.executable, "planned_trainer.py"], folder)


def test_the_printed_plan_is_what_the_command_prints(folder: Path) -> None:
    command = next(c for c in COMMANDS if c.endswith("--gpus 8"))
    argv = shlex.split(command)
    output = run_command([str(Path(sys.executable).parent / argv[0]), *argv[1:]], folder)
    shown = TEXT.partition("<!-- plan -->\n```text\n")[2].partition("```")[0]
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in output.splitlines()]


def test_the_table_of_rules_is_the_recorded_one() -> None:
    assert rules_table() in TEXT


def test_the_table_of_memory_is_the_recorded_one() -> None:
    assert memory_table() in TEXT


def test_the_table_of_token_files_is_the_recorded_one_and_no_rank_grows_with_its_file() -> None:
    record = json.loads((ROOT / "configs" / "results" / "tokens.json").read_text())
    assert tokens.table(record) in TEXT
    rows = {row["data"]: row for row in record["rows"]}
    for size in tokens.SIZES:
        assert rows[f"tokens, {size}"]["anon_mb"] < rows["the model alone"]["anon_mb"] + 50
        assert rows[f"tokens, {size}"]["data_wait_pct"] < 0.5


def test_the_table_of_kinds_of_data_is_the_recorded_one_and_none_is_slower_than_its_own_library() -> None:
    record = json.loads((ROOT / "configs" / "results" / "sources.json").read_text())
    assert sources.table(record) in TEXT
    assert all(row["ratio"] >= 1 for row in record["rows"])


def test_the_table_of_images_is_the_recorded_one_and_none_is_slower_than_a_data_set_by_hand() -> None:
    record = json.loads((ROOT / "configs" / "results" / "images.json").read_text())
    assert images.table(record) in TEXT
    assert all(row["ratio"] >= 1 for row in record["rows"])


def test_the_table_of_planted_bugs_is_the_recorded_one_and_all_are_named_in_all_styles() -> None:
    record = json.loads(verify_table.OUT.read_text())
    assert verify_table.table(record) in TEXT
    assert {bug: set(cells.values()) for bug, cells in record["bugs"].items()} == {bug: {"named"} for bug in BUGS}
    assert {style: list(names) for style, names in record["clean"].items()} == {
        style: list(names) for style, names in CLEAN.items()
    }
    assert [told for names in record["clean"].values() for told in names.values() if told] == []


def test_the_tables_of_the_order_of_blocks_are_the_recorded_ones_and_it_reads_less_from_disk() -> None:
    record = json.loads((ROOT / "configs" / "results" / "blocks.json").read_text())
    assert blocks.table(record) in TEXT
    full, in_blocks = record["reads"]
    assert in_blocks["faults"] < full["faults"] / 2
    told = {(row["run"], row["order"]): row["largest_difference_se"] for row in record["shuffles"]}
    assert told[blocks.RUNS[1], "blocks"] < 4 < told[blocks.RUNS[1], "as the data lie"]


def test_the_sweeps_shown_are_the_recorded_ones() -> None:
    assert f"{MARKS[0]}\n{shown()}{MARKS[1]}" in TEXT


def test_the_table_of_launches_is_the_recorded_one_and_every_loss_was_that_of_one_process() -> None:
    record = json.loads((ROOT / "configs" / "results" / "launch.json").read_text())
    assert launch_table(record) in TEXT
    assert set(record["rows"]) == set(KINDS)
    assert max(row["worst"] for row in record["rows"].values()) < 1e-6
    told = record["preempted"]
    assert (told["samples_lost_or_repeated"], told["wandb_runs"], told["restarts_by_slurm"]) == (0, 1, 1)
    assert told["samples_at_stop_and_restart"][0] == told["samples_at_stop_and_restart"][1] > 0


def test_what_lost_hosts_cost_is_the_recorded_time() -> None:
    assert lost_hosts(json.loads((ROOT / "configs" / "results" / "hosts.json").read_text())) in " ".join(TEXT.split())


def test_the_counts_of_damaged_checkpoints_are_the_recorded_ones() -> None:
    found = json.loads((ROOT / "configs" / "results" / "checkpoints.json").read_text())
    trials = {"corruptions": "", "full disks": "refused", "kills": "killed"}
    counts = [sum(r["number"] for r in found["rows"] if r["trials"] == what and kind in r["kind"]) for what, kind in trials.items()]
    text = "Of {:,} damaged\ncheckpoints, {:,} saves on a full disk and {:,} that were killed, none was taken for good".format(
        *counts
    )
    assert text in TEXT
    assert found["failed"] == 0


def survival() -> str:
    """The READMEs' sentences on configs/results/kills.json and sigterm.json."""
    kills, stops = (json.loads((ROOT / "configs" / "results" / f"{name}.json").read_text()) for name in ("kills", "sigterm"))
    total, unended, back = kills["total"], len(kills["failed"]), kills["restart"]
    assert total["orphans"] == total["steps missing"] == 0
    return (
        f"Of {total['kills']:,} kills of ranks, launching processes and launchers at random moments (`python -m tests.soak.kills`) "
        f"{total['bad resumes']} ended in a bad resume, and {total['samples lost or repeated']} samples were lost or repeated"
        + (f"; {unended} runs did not come to their end" if unended else "")
        + f". From a kill to the end of the next step it took {back['all_median_s']:.1f} s, at most {back['all_max_s']:.1f}, "
        f"of which {back['imports_median_s']:.1f} s are Python's imports"
        + f". Of {stops['count']} SIGTERMs, {stops['right']} left a checkpoint of the last step and no process "
        "(`python -m tests.soak.sigterm`)."
    )


def recoveries() -> str:
    """The README's sentence on configs/results/survivors.json."""
    total = json.loads((ROOT / "configs" / "results" / "survivors.json").read_text())["total"]
    spread = total["to_the_end_of_the_next_step_s"]
    return (
        f"Of {total['kills']} kills of one of four ranks, one after another in a run (`python -m tests.soak.survivors`), after "
        f"{total['in_place']} the others continued in place. The next step ended {spread['median']:.1f} s after the kill, at most "
        f"{spread['max']:.1f}; {total['samples_lost_or_repeated']} samples were lost or repeated, and losses differ by at most "
        f"{total['largest_loss_difference']:.1g} (relative) from those of a run without kills."
    )


def test_the_table_of_adam_s_rules_is_what_was_recorded() -> None:
    assert f"{adam_rules.MARKS[0]}\n{adam_rules.table(adam_rules.read())}{adam_rules.MARKS[1]}" in TEXT


def test_what_a_run_survives_is_what_was_recorded() -> None:
    for sentence in (survival(), recoveries()):
        assert sentence in " ".join(TEXT.split())


def memory_table() -> str:
    """The READMEs' table of configs/results/memory.json."""
    rows = json.loads((ROOT / "configs" / "results" / "memory.json").read_text())["rows"]
    columns = sorted({(row["precision"], row["ranks"]) for row in rows}, key=lambda c: (c[0] != "fp32", c[1]))
    ranks = [f"{precision}, {count} rank{'s' * (count > 1)}" for precision, count in columns]
    lines = ["| `backend.name` | " + " | ".join(ranks) + " |", "|---" * (len(ranks) + 1) + "|"]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        found = {(row["precision"], row["ranks"]): row["bytes_per_weight"] for row in rows if row["backend"] == backend}
        lines.append(f"| `{backend}` | " + " | ".join(f"{found[c]:.1f}" for c in columns) + " |")
    return "\n".join(lines)


def rules_table() -> str:
    """The READMEs' table of configs/results/digits_rules.json."""
    rows = json.loads((ROOT / "configs" / "results" / "digits_rules.json").read_text())["rows"]
    ratios = sorted({row["k"] for row in rows})
    lines = ["| rule | " + " | ".join(f"k = {k}" for k in ratios) + " |", "|---" * (len(ratios) + 1) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in rows):
        at = {row["k"]: row["accuracy_pct"] for row in rows if row["rule"] == rule}
        cells = [f"{statistics.mean(at[k]):.2f} ± {statistics.stdev(at[k]):.2f} %" for k in ratios]
        lines.append(f"| `{rule}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
