"""What a terminal gets: text of others never steers it; and whatever becomes of the output, training continues to its end."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.config.errors import UserError, printable
from harness.config.loader import load
from harness.config.user_errors import explain, summary
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.supervision.output_redirect import coloured, echo, say
from harness.telemetry.events import Ended, Evaluated, Noticed, Saved, Started
from harness.watch.console import Terminal
from harness.watch.isolation import Isolation
from harness.watch.plan_table import print_plan, print_rows
from harness.watch.progress import series
from launch.cli import main
from launch.processes.job_pool import last_line
from launch.processes.output_relay import LONGEST, Output
from tests.support.processes import ROOT, environ

ODD = "a[/b][red]\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202eback:fire:\\"
STEERS = set("\x1b\x07\x9b\r\u202e\U0001f525")
RECIPE = """
from dataclasses import dataclass
from harness.recipes.digits import Digits

@dataclass(frozen=True)
class Chatty(Digits):
    def loss(self, model, batch):
        print("λ of this pass")
        return super().loss(model, batch)
"""
SHORT = (
    "--recipe.width 4 --schedule.epochs null --schedule.samples 640 --scaling.rule none --scaling.warmup_epochs null "
    "--batch.per_gpu null --batch.total 32 --watch.wandb off"
)


def test_what_steers_a_terminal_becomes_text_and_lines_stay() -> None:
    assert printable("λ\ta\n\x1b[2J\udcff") == "λ\ta\n\\u001b[2J\\udcff"


@given(st.text(st.characters()))
def test_any_text_can_be_shown_and_is_the_same_the_second_time(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert printable(shown) == shown
    json.loads(printable(json.dumps(text)))


def planned() -> Plan:
    """A plan whose reasons name what others have named."""
    found = plan(load(ROOT / "configs" / "digits.yaml", {}), World(8))
    found.sources["lr"] = ODD
    return found


def events(out: io.StringIO) -> None:
    """A run that shows each kind of text."""
    Path(ODD).mkdir(parents=True)
    (Path(ODD) / "events.jsonl").touch()
    watcher = Terminal(Console(file=out, emoji=False, width=200), against=Path(ODD) / "events.jsonl")
    watcher(Started(planned(), {}, ODD, 0, 0, 1, "cpu"))
    watcher(Evaluated(1, 1, {f"eval/{ODD}": 1.0}, True))
    watcher(Saved(1, 1, ODD, 0.1, 1, 0.1))
    watcher(Noticed(1, 1, "spike", ODD))
    watcher(Ended(1, 1, "failed", ODD, {f"best/{ODD}": 1.0}))


def progress(out: io.StringIO) -> None:
    """The progress of a series of runs."""
    with series("sweep", 1, console=Console(file=out, emoji=False, width=200)) as told:
        told(ODD)


def error(out: io.StringIO) -> None:
    """An error in users' code, and a mistake of theirs."""
    failure = ValueError(ODD)
    out.write(f"{UserError(ODD, ODD, ODD)}\n{summary(failure)}\n{explain(failure)}")


PRINTS: list[Callable[[io.StringIO], None]] = [
    events,
    progress,
    error,
    lambda out: print_plan(planned()),
    lambda out: print_rows(["a"], [[ODD]]),
    lambda out: echo(ODD),
    lambda out: say(ODD),
    lambda out: Isolation(ODD).failed(ODD, ValueError(ODD)),
]


@pytest.mark.parametrize("show", PRINTS, ids=range(len(PRINTS)))
def test_text_of_others_neither_steers_the_terminal_nor_is_markup(
    show: Callable[[io.StringIO], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    out = io.StringIO()
    show(out)
    text = out.getvalue() + "".join(capsys.readouterr())
    assert not STEERS & set(text)
    assert "a[/b][red]\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m" in text


def test_folders_of_odd_names_are_reported_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ODD.replace("/", "|")
    folder.mkdir()
    for argv in (["report", str(folder)], ["branch", str(folder)], ["export", str(folder), "--out", "x"], ["train", str(folder)]):
        assert main(argv) == 2
        shown = capsys.readouterr()
        assert "a[|b][red]\\u001b]0;owned" in shown.err
        assert not STEERS & set(shown.err + shown.out)


ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
LATIN = {"PYTHONIOENCODING": "ascii"}
C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("flags", "variables"), [(f"launch --dry-run --run.dir runs/{ALPHA}", LATIN), ("plan", C), ("launch --help", C)]
)
def test_a_terminal_of_ascii_alone_gets_text_and_no_traceback(flags: str, variables: dict[str, str]) -> None:
    command, *others = flags.split()
    argv = [sys.executable, "-m", "launch", command, "configs/digits.yaml", "--gpus", "8", *others]
    done = subprocess.run(argv, cwd=ROOT, env=environ() | variables, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()


@pytest.mark.parametrize("how", ["flag", "run file", "folder"])
@pytest.mark.parametrize("command", ["plan", "launch --gpus 0", "train"])
def test_a_name_that_the_locale_cannot_write_is_one_line(command: str, how: str, tmp_path: Path) -> None:
    name, *others = command.split()
    text, here = (ROOT / "configs" / "digits.yaml").read_text(), tmp_path / (ALPHA if how == "folder" else "here")
    here.mkdir()
    (here / "run.yaml").write_text(text + (f"run: {{dir: runs/{ALPHA}}}\n" if how == "run file" else ""))
    flags = {"flag": ["--run.dir", f"runs/{ALPHA}"], "folder": ["--run.dir", str(here / "run")]}.get(how, [])
    argv = [sys.executable, "-m", "launch", name, "run.yaml", *others, *flags]
    done = subprocess.run(argv, cwd=here, env=environ() | C, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("which is no name in ascii, as this process writes names; set LC_ALL=C.UTF-8 or PYTHONUTF8=1\n")
    assert [p.name for p in here.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("how", "variables"),
    [
        ("| head -c 1", {}),
        (">/dev/full", {}),
        (">/dev/full 2>/dev/full", {}),
        (">&-", {}),
        ("<&- >&- 2>&-", {}),
        ("2>&1 | head -c 1", LATIN),
        ("| cat", LATIN),
        ("| cat", C),
    ],
)
@pytest.mark.parametrize("command", ["train", "launch"])
def test_a_run_comes_to_its_end_whatever_becomes_of_its_output(
    command: str, how: str, variables: dict[str, str], tmp_path: Path
) -> None:
    if command == "launch" and (variables or how == ">&-"):
        pytest.skip("launch has its ranks' output go through a pipe of its own, in UTF-8")
    (tmp_path / "chatty.py").write_text(RECIPE)
    (tmp_path / "run.yaml").write_text(
        (ROOT / "configs" / "digits.yaml").read_text().replace("use: digits", "use: chatty.py:Chatty")
    )
    where = "--gpus 0 --procs 1" if command == "launch" else ""
    line = f"{sys.executable} -m launch {command} run.yaml {where} {SHORT} --run.dir run {how}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environ() | variables, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(row) for row in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in lines if row["event"] == "step"] == list(range(32, 641, 32))
    assert lines[-1]["reason"] == "complete"
    assert (tmp_path / "run" / "checkpoints" / "samples-000000000640" / "manifest.json").is_file()
    lost = "head" in how or "full" in how
    assert done.stderr.count("output cannot be written") == (1 if lost and "2>" not in how else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_without_an_end_takes_no_memory_and_all_of_it_reaches_the_log(tmp_path: Path) -> None:
    """A library that prints without line breaks, and a progress bar that overwrites its line for hours."""
    block, bar = b"x" * (1 << 16), b"%d of 1000 steps\r"
    with Output(tmp_path / "rank-0.log") as output:
        fd = os.open(output.path, os.O_WRONLY | os.O_NONBLOCK)
        for _ in range(100):
            os.write(fd, block)
            while output.pump(0.0):
                assert len(output._rest) <= LONGEST + len(block)
        os.write(fd, b"\n")
        for number in range(1000):
            os.write(fd, bar % number)
            while output.pump(0.0):
                assert len(output._rest) <= LONGEST if number == 0 else len(output._rest) < 2 * len(bar) + 8
        os.write(fd, b"1000 of 1000 steps\r\nend\n")
        os.close(fd)
    written = (tmp_path / "rank-0.log").read_bytes()
    assert written.count(b"x") == 100 * len(block)
    assert written.endswith(b"x\n1000 of 1000 steps\nend\n")


def test_the_last_line_of_a_long_log_is_found_at_its_end(tmp_path: Path) -> None:
    log = tmp_path / "trial.log"
    with log.open("wb") as file:
        file.truncate(1 << 32)  # a hole: it takes no disk
        file.seek(0, 2)
        file.write(b"\nthe last line\n\n")
    assert last_line(log) == "the last line"
    log.write_bytes(b"")
    assert last_line(log) == "no output"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_writes_through_no_link_that_lies_in_the_place_of_its_log(rank: int, tmp_path: Path) -> None:
    """Its launcher looks before it starts the rank; the link may come between."""
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / f"rank-{rank}.log").symlink_to("secret")
    code = (
        "import os, sys\nfrom harness.supervision.launch_env import Launched\n"
        "from harness.supervision.output_redirect import redirect\n"
        f"redirect(Launched(os.getpid(), sys.argv[1], '/proc/none'), {rank})\nprint('lost', flush=True)\nos.write(2, b'lost')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "secret").read_text() == "hunter2"


def test_error_warn_and_ok_are_coloured_at_a_terminal_alone() -> None:
    text = "ok   disk\nwarn   slow\nerror: no\nan error: no"
    told = "\x1b[32mok \x1b[0m  disk\n\x1b[33mwarn \x1b[0m  slow\n\x1b[31merror:\x1b[0m no\nan error: no"
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        assert coloured(text, terminal, {}) == told
        assert coloured(text, terminal, {"NO_COLOR": "1"}) == coloured(text, terminal, {"TERM": "dumb"}) == text
    os.close(ours)
    assert coloured(text, io.StringIO(), {}) == text
