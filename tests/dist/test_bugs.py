"""A bug in a recipe looks like one: its own file and line first, once, from whichever process; it is no bad sample."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.schema import RecipeConfig
from harness.config.user_errors import BugError, QuitError, explain, is_bug, is_own, is_quit, summary
from harness.data.feed import Feed, Micro
from harness.data.sample_order import Chunk, StepShards
from harness.recipes.base import load_recipe
from tests.support.processes import ROOT, environ

RECIPE = """
import json
import random
from dataclasses import dataclass
import torch
from torch import nn
from torch.utils.data import default_collate
from harness.recipes.base import Recipe

class Rows:
    def __init__(self, kind):
        self.kind = kind
    def __len__(self):
        return 32
    def __getitem__(self, i):
        row = {"x": torch.ones(3), "y": torch.ones(1)}
        if i == 5:
            self.broken(row)
        return row
    def broken(self, row):
        match self.kind:
            case "key": row["label"]
            case "name": undefined
            case "attribute": row["x"].no_such
            case "type": row["x"] + "text"
            case "index": [][3]
            case "assert": assert not row
            case "import": import no_such_module
            case "library": json.loads(None)
            case "breakpoint": breakpoint()
            case "value": raise ValueError("damaged")
            case "os": open("/no/such/file")
            case "json": json.loads("{")
            case "division": 1 / 0
            case "library index": random.choice([])

@dataclass(frozen=True)
class Mine(Recipe):
    kind: str = ""
    workers: int = 0
    def model(self):
        return nn.Linear(3, 1)
    def data(self, split):
        if self.kind == "data":
            return self.undefined
        return Rows(self.kind)
    def collate(self, samples):
        if self.kind == "collate":
            return {"x": samples[0]["label"]}
        if self.kind == "unequal":
            samples = [{"x": torch.ones(n)} for n, _ in enumerate(samples)]
        if self.kind == "none":
            samples = [{**sample, "box": None} for sample in samples]
        if self.kind == "no key":
            samples = [{"x": torch.ones(3)}, *samples[1:], {}]
        return default_collate(samples)
    def loss(self, model, batch):
        if self.kind == "loss":
            batch["label"]
        if self.kind == "shape":
            return model(batch["x"][:, :2]).sum(), len(batch["x"])
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])
    def metrics(self, model, batch):
        if self.kind == "metrics":
            batch["no such"]
        return {"loss": self.loss(model, batch)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a bug of each kind, and its run file."""
    folder = tmp_path_factory.mktemp("bugs")
    (folder / "mine.py").write_text(RECIPE)
    run: dict[str, Any] = {
        "recipe": {"use": "mine.py:Mine"},
        "batch": {"reference": 8, "total": 8},
        "optim": {"lr": 0.01},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 64},
        "watch": {"wandb": "off"},
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    return folder


def micros(folder: Path, kind: str, workers: int) -> tuple[list[Micro], Feed]:
    """Two passes of 4 samples, the second with the broken one, and what fetched them."""
    import torch

    recipe = load_recipe(RecipeConfig(use=f"{folder}/mine.py:Mine", knobs={"kind": kind, "workers": workers}))
    data: Any = recipe.data("train")
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "collate": recipe.collate}
    feed = Feed(data, order=None, workers=workers, **options)
    return feed.few(StepShards(0, 8, (Chunk(0, 4), Chunk(4, 4)))), feed


def line(text: str) -> int:
    """The line of the recipe in which a text stands."""
    return next(number for number, row in enumerate(RECIPE.splitlines(), 1) if text in row)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "at", "name"),
    [
        ("key", 'row["label"]', "KeyError"),
        ("name", "undefined", "NameError"),
        ("attribute", "no_such", "AttributeError"),
        ("type", '+ "text"', "TypeError"),
        ("index", "[][3]", "IndexError"),
        ("assert", "assert not row", "AssertionError"),
        ("import", "import no_such_module", "ModuleNotFoundError"),
        ("library", "json.loads(None)", "TypeError"),
        ("collate", 'samples[0]["label"]', "KeyError"),
    ],
)
def test_a_bug_is_no_bad_sample_and_names_its_line(folder: Path, kind: str, at: str, name: str, workers: int) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  which it is, is looked at below
        micros(folder, kind, workers)
    assert isinstance(caught.value, BugError) if workers else is_bug(caught.value)
    text = explain(caught.value)
    first, second, *rest = text.splitlines()
    assert first.startswith(name)
    assert second == f'  in File "{folder}/mine.py", line {line(at)}, in {"collate" if kind == "collate" else "broken"}'
    assert "harness/" not in text
    assert "site-packages" not in text
    assert any(row.startswith("  (") and "not shown" in row for row in rest)
    assert summary(caught.value).startswith(name)
    assert f"line {line(at)}" in summary(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["value", "os", "json", "division", "library index"])
def test_what_damaged_data_raise_is_a_bad_sample(folder: Path, kind: str, workers: int) -> None:
    found, feed = micros(folder, kind, workers)
    assert [m.chunk.count for m in found] == [4, 3]
    assert [t.sample for t in feed.troubles] == [5]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "error"), [("unequal", "RuntimeError"), ("none", "TypeError"), ("no key", "KeyError")])
def test_samples_that_make_no_batch_are_a_mistake_told_with_the_line(folder: Path, workers: int, kind: str, error: str) -> None:
    """Whatever torch's default_collate raises is said of the samples, also where it is called from the recipe's own collate."""
    at = line("return default_collate")
    with pytest.raises(UserError, match=rf'make no batch \({error}: .*mine\.py", line {at}, in collate'):
        micros(folder, kind, workers)


def test_a_debugger_in_a_data_worker_says_that_there_is_no_terminal(folder: Path) -> None:
    with pytest.raises(QuitError) as caught:
        micros(folder, "breakpoint", 1)
    assert is_quit(caught.value)
    assert explain(caught.value) == "the debugger was left (a data worker has no terminal to debug in: set recipe.workers to 0)\n"


def test_an_error_without_users_code_is_told_whole() -> None:
    try:
        json.loads("{")
    except ValueError as e:
        inner = e.with_traceback(e.__traceback__ and e.__traceback__.tb_next)
        assert explain(inner).startswith("Traceback (most recent call last):")
    assert not is_own(json.__file__)
    assert not is_own(str(ROOT / "harness" / "training" / "loop.py"))
    assert not is_own("<string>")
    assert is_own(__file__)


def said(folder: Path, *argv: str, stdin: str = "") -> tuple[int, str]:
    """(exit status, everything said) of a command in the folder."""
    command = [sys.executable, "-m", *argv]
    done = subprocess.run(
        command, cwd=folder, env=environ(), input=stdin, capture_output=True, text=True, timeout=1200, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_train_shows_users_frames_alone_and_a_debugger_ends_the_run_at_q(folder: Path) -> None:
    for kind, at, name in (("shape", "[:, :2]", "RuntimeError"), ("data", "self.undefined", "AttributeError")):
        status, text = said(folder, "launch", "train", "run.yaml", "--recipe.kind", kind, "--run.dir", f"{kind}-train")
        assert status == 1
        assert text.count(f'in File "{folder}/mine.py", line {line(at)}') >= 1
        assert text.count(f"\n{name}") + text.startswith(name) == 1, text
        assert "Traceback" not in text
        assert "harness/training/loop.py" not in text
    status, text = said(folder, "launch", "train", "run.yaml", "--recipe.kind", "breakpoint", "--run.dir", "b", stdin="q\n")
    assert status == 1
    assert text.count("(Pdb)") == 1
    assert "the debugger was left" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("kind", ["key", "data", "metrics"])
def test_launch_shows_a_bug_once(folder: Path, kind: str) -> None:
    """In a data set's `__getitem__`, in `data()` before the ranks have met, and in `metrics`, which all ranks call."""
    argv = ["run.yaml", "--gpus", "0", "--procs", "2", "--recipe.kind", kind, "--recipe.samples", "32"]
    status, text = said(folder, "launch", "launch", *argv, "--run.dir", f"{kind}-launch")
    at = {"key": 'row["label"]', "data": "self.undefined", "metrics": 'batch["no such"]'}[kind]
    assert status == 1, text
    assert text.count(f'  in File "{folder}/mine.py", line {line(at)}') == 1, text
    assert "Traceback" not in text
    assert "torch/distributed" not in text
