"""A watcher that fails costs the events that it failed on, a line and a count: never its thread, never the run."""

import io
import json
import os
import subprocess
import sys
from bdb import BdbQuit
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import WatchConfig
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Ended, Event, Noticed, Started, Windowed
from harness.watch.isolation import Isolated
from harness.watch.journal_writer import Journal
from harness.watch.wandb import WandbWatcher
from harness.watch.wandb_mode import requested_mode
from harness.watch.watchers import check_watchers, make_own
from tests.support.processes import environ
from tests.support.wandb_record import history

WATCHERS = """
import sys
from dataclasses import dataclass
import torch
from harness.recipes.digits import Digits

class Misses:
    def __call__(self, event):
        if type(event).__name__ == "Windowed":
            event.metrics["train/acuracy"]

class Quits:
    def __call__(self, event):
        sys.exit(3)

class Greedy:
    def __call__(self, event, more):
        pass

@dataclass(frozen=True)
class Odd(Digits):
    def examples(self, model, batch):
        return [{"image": torch.zeros(3)}, {"label": object()}]
"""


def lines_of(journal: Path) -> list[dict[str, Any]]:
    """A journal's lines, every one of them whole."""
    return [json.loads(line) for line in journal.read_text().splitlines()]


def run_file(folder: Path, **watch: Any) -> Path:
    """Twenty steps of digits in windows of two, evaluated four times, with examples that nothing can show."""
    (folder / "mine.py").write_text(WATCHERS)
    tree = {
        "recipe": {"use": "mine.py:Odd", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.01},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 640},
        "eval": {"every_samples": 160},
        "watch": {"every_steps": 2} | watch,
        "run": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    return folder / "run.yaml"


def train(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`widebatch train` of a run file."""
    argv = [sys.executable, "-m", "launch", "train", str(path)]
    return subprocess.run(argv, cwd=path.parent, env=environ() | env, capture_output=True, text=True, check=False)


def test_watchers_that_fail_each_in_their_way_end_neither_the_run_nor_another_watcher(tmp_path: Path) -> None:
    use = [f"mine.py:{name}" for name in ("Misses", "Quits", "Greedy")]
    done = train(run_file(tmp_path, use=use, trackers=["tensorboard"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete after 20 steps" in done.stdout
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("warn ")]
    assert len([line for line in said if "Misses failed on window: KeyError: 'train/acuracy' (mine.py line 10)" in line]) == 1
    assert len([line for line in said if "mine.py:Misses missed 12 of 43 events: 12 window" in line]) == 1
    assert len([line for line in said if "Quits failed on start: SystemExit: 3 (mine.py line 14)" in line]) == 1
    assert len([line for line in said if "Greedy failed on start: TypeError" in line]) == 1
    assert len([line for line in said if "W&B failed on examples: " in line]) == 1
    assert len(said) == 8, "each once, and once how many"
    lines = lines_of(tmp_path / "run" / "events.jsonl")
    points = [line["samples"] for line in lines if line["event"] in ("window", "eval")]
    told = [row for row in history(tmp_path / "run") if "progress/train_s" in row]
    assert [row["progress/samples"] for row in told] == points, "W&B has every window and evaluation after what it could not take"
    assert [row["reliability/log_points_dropped"] for row in told if "train/loss" in row][-1] == 3, (
        "examples before the last window"
    )


MISTAKES = [
    ({"use": ["mine.py:Misses", "mine.py:lines"]}, {}, "watch.use", "has no 'lines'"),
    ({"trackers": ["mlflow"]}, {}, "watch.trackers", "pip install mlflow"),
    ({"trackers": ["tensorbord"]}, {}, "watch.trackers", "did you mean tensorboard?"),
    ({"against": "nowhere"}, {}, "watch.against", "holds no events.jsonl"),
    ({}, {"WANDB_MODE": "nonsense"}, "WANDB_MODE", "known: online, offline, disabled"),
    ({}, {"WANDB_DISABLED": "ture"}, "WANDB_DISABLED", "did you mean true?"),
]


@pytest.mark.parametrize(("watch", "env", "setting", "says"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_watcher_that_cannot_be_had_is_a_mistake_before_training(
    watch: dict[str, Any], env: dict[str, str], setting: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(WATCHERS)
    monkeypatch.chdir(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        check_watchers(msgspec.convert(watch, WatchConfig))
    assert error.value.setting == setting
    assert says in str(error.value)


MAKERS = """
import os

class Slack:
    def __init__(self):
        self.url = os.environ["NO_SUCH_VARIABLE_HERE"]

class Wants:
    def __init__(self, url):
        pass

def nothing():
    return None
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Slack", "makers.py:Slack cannot be made: KeyError: 'NO_SUCH_VARIABLE_HERE' (makers.py line 6)"),
        ("Wants", "makers.py:Wants cannot be made: TypeError: Wants.__init__() missing 1 required positional argument: 'url'"),
        ("nothing", "makers.py:nothing gives a NoneType, which cannot be called"),
    ],
)
def test_a_watcher_that_cannot_be_made_is_a_mistake_with_its_line(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "makers.py").write_text(MAKERS)
    watching = check_watchers(WatchConfig(wandb="off", use=(f"{tmp_path}/makers.py:{name}",)))
    with pytest.raises(UserError, match=r"^watch\.use: ") as error:
        make_own(watching)
    assert says in str(error.value)


def test_a_mistake_of_w_and_b_s_own_variable_is_one_line_with_status_2_and_leaves_nothing(tmp_path: Path) -> None:
    done = train(run_file(tmp_path), WANDB_MODE="nonsense")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "variables", "mode", "says"),
    [
        ("offline", {}, "offline", ""),
        ("offline", {"WANDB_MODE": ""}, "offline", ""),
        ("off", {"WANDB_MODE": "nonsense"}, "off", ""),
        ("offline", {"WANDB_MODE": "disabled"}, "off", "WANDB_MODE=disabled: no W&B run"),
        ("online", {"WANDB_DISABLED": "TRUE"}, "off", "WANDB_DISABLED=true: no W&B run"),
        ("online", {"WANDB_DISABLED": "false"}, "online", ""),
        ("online", {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "off", "WANDB_DISABLED=1: no W&B run"),
        ("offline", {"WANDB_MODE": "dryrun"}, "offline", ""),
        (None, {}, "offline", ""),
        (None, {"WANDB_MODE": "online"}, "online", ""),
        (None, {"WANDB_MODE": "disabled"}, "off", "WANDB_MODE=disabled: no W&B run"),
        (None, {"WANDB_MODE": "shared"}, "offline", "WANDB_MODE=shared is ignored: here one process writes a run"),
        ("offline", {"WANDB_MODE": "online"}, "offline", "WANDB_MODE=online is ignored: watch.wandb is offline"),
        ("online", {"WANDB_MODE": "offline"}, "online", "WANDB_MODE=offline is ignored: watch.wandb is online"),
        ("online", {"WANDB_MODE": "shared"}, "online", "WANDB_MODE=shared is ignored: watch.wandb is online"),
    ],
)
def test_w_and_b_s_own_variables_count_where_the_run_file_says_nothing_and_can_switch_it_off(
    asked: Any, variables: dict[str, str], mode: str, says: str
) -> None:
    assert requested_mode(asked, variables) == (mode, says)


def window(step: int) -> Windowed:
    """A window of one step."""
    return Windowed(step, step, {"train/loss": 1 / step})


def test_w_and_b_that_does_not_start_is_said_once_and_all_that_it_missed_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb_id").mkdir()
    config = decode(
        {"recipe": {"samples": 9}, "batch": {"reference": 1, "total": 1}, "optim": {"lr": 1}, "schedule": {"samples": 9}}
    )
    watcher = WandbWatcher(config.watch, tmp_path)
    watcher(Started(plan(config, World(1)), {}, str(tmp_path), 0, 0, 1, "cpu"))
    for step in range(1, 6):
        watcher(window(step))
    watcher.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"warn   W&B failed on start: run.dir: {tmp_path}/wandb_id ")
    assert lines[1:] == ["warn   W&B missed 6 of 6 events: 1 start, 5 window"]


def test_the_same_failure_is_said_once_and_another_too(capsys: pytest.CaptureFixture[str]) -> None:
    def odd(event: Event) -> None:
        if isinstance(event, Noticed):
            raise LookupError("two\n  lines")
        raise ValueError(event.step)

    watcher = Isolated("mine", odd)
    for event in (window(1), window(2), Noticed(2, 2, "code", "text"), window(3), Ended(3, 3, "complete", "")):
        watcher(event)
    watcher.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("training")[0] for line in lines[:2]] == [
        f"warn   mine failed on window: ValueError: 1 (test_isolation.py line {odd.__code__.co_firstlineno + 3}); ",
        f"warn   mine failed on notice: LookupError: two lines (test_isolation.py line {odd.__code__.co_firstlineno + 2}); ",
    ]
    assert lines[2:] == ["warn   mine missed 5 of 5 events: 3 window, 1 notice, 1 end"]


def test_whoever_leaves_a_debugger_or_presses_ctrl_c_inside_a_watcher_ends_the_run() -> None:
    for leaving in (BdbQuit, KeyboardInterrupt):

        def left(event: Event, leaving: type[BaseException] = leaving) -> None:
            raise leaving

        with pytest.raises(leaving):
            Isolated("mine", left)(window(1))


def test_a_failure_that_nobody_can_be_told_is_none_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)

    def broken(event: Event | None = None) -> None:
        raise LookupError

    watcher = Isolated("mine", broken, broken)
    watcher(window(1))
    watcher.close()


def test_a_disk_that_is_full_for_a_while_costs_the_journal_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    watcher, file = Isolated("the journal", journal, journal.close), journal._file
    watcher(window(1))
    with Path("/dev/full").open("wb", buffering=0) as full:
        journal._file = full
        for step in range(2, 6):
            watcher(window(step))
    journal._file = file
    watcher(window(6))
    watcher.close()
    assert [line["step"] for line in lines_of(tmp_path / "events.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "window", "st')
    journal = Journal(path)
    journal(window(1))
    journal.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()[1:]] == [1]


def test_a_launcher_whose_reader_has_left_or_whose_log_is_full_passes_its_ranks_output_on_as_far_as_it_can(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom harness.supervision.output_redirect import outlive_readers\n"
        "from launch.processes.output_relay import Output\noutlive_readers()\n"
        "with Output(Path(sys.argv[1])) as output:\n"
        "    for number in range(3):\n"
        "        fd = os.open(output.path, os.O_WRONLY)\n        os.write(fd, b'line %d\\n' % number)\n        os.close(fd)\n"
        "        while output.pump(0.0):\n            pass\n"
        "        if number == 0 and sys.argv[2] == 'full':\n            output._log._fd = os.open('/dev/full', os.O_WRONLY)\n"
    )
    for fault in ("left", "full"):
        read, written = os.pipe()
        if fault == "left":
            os.close(read)
        log = tmp_path / f"{fault}.log"
        command = [sys.executable, "-c", code, str(log), fault]
        done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, env=environ(), check=False)
        os.close(written)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") == (1 if fault == "left" else 2)
        if fault == "left":
            assert log.read_text() == "line 0\nline 1\nline 2\n"
            assert "output cannot be written (Broken pipe) and is lost" in done.stderr
        else:
            assert os.read(read, 100) == b"line 0\nline 1\nline 2\n"
            assert f"{log} is not written (No space left on device)" in done.stderr
            assert f"{log} lacks 14 bytes" in done.stderr
            os.close(read)
