"""A user's own code is found as `python file.py` finds it: beside the file, in its package, from any working directory."""

import sys
from pathlib import Path

import pytest

from harness.config.errors import UserError
from harness.config.sibling_modules import neighbours
from harness.config.user_code import load_attribute, resolved
from tests.support.processes import run_command, run_ranks

RECIPE = '''
"""Imports what lies beside it: at the top, in a method, in data workers and in a process that is spawned."""
import multiprocessing
from dataclasses import dataclass
from torch import nn
from beside import Rows
from harness.recipes.base import Recipe

def doubled(n):
    import late
    return late.twice(n)

@dataclass(frozen=True)
class Near(Recipe):
    width: int = 4
    workers: int = 1
    def model(self):
        return nn.Linear(4, 1)
    def data(self, split):
        if split == "valid":
            return Rows(8)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return Rows(pool.apply(doubled, (20,)))
    def loss(self, model, batch):
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])
'''
BESIDE = """
import torch

class Rows:
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        import late
        x = torch.full((4,), late.twice(i) / 100)
        return {"x": x, "y": x.sum(0, keepdim=True)}
"""
RUN = """
recipe: {use: "near.py:Near"}
batch: {reference: 8, total: 8}
optim: {lr: 0.01}
scaling: {rule: "pack.rules:same"}
schedule: {samples: 32}
watch: {wandb: off, use: ["pack/seen.py:Seen"]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a recipe and its neighbours, and a package with a rule and a watcher that import one another relatively."""
    files = {
        "near.py": RECIPE,
        "beside.py": BESIDE,
        "late.py": "def twice(n):\n    return 2 * n\n",
        "run.yaml": RUN,
        "pack/__init__.py": "",
        "pack/numbers.py": "ONE = 1.0\n",  # as a module of Python's is called
        "pack/rules.py": "from .numbers import ONE\n\ndef same(k):\n    return ONE\n",
        "pack/seen.py": "from . import numbers\n\nclass Seen:\n    def __call__(self, event):\n        assert numbers.ONE == 1.0\n",
    }
    for name, text in files.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


def test_train_launch_and_the_worker_find_neighbours_and_packages_from_any_folder(project: Path, tmp_path: Path) -> None:
    """And the resolved run file in the run folder finds them too, with a knob given before it."""
    away = tmp_path / "away"
    away.mkdir()
    run, start = str(project / "run.yaml"), [sys.executable, "-m", "launch"]
    told = run_ranks(1, ["launch", "train", "--recipe.width", "8", run, "--run.dir", "one"], away)
    assert "complete after 4 steps" in told
    told = run_command([*start, "launch", "one/run.yaml", "--gpus", "0", "--procs", "2", "--schedule.samples", "64"], away)
    assert "complete after 8 steps" in told
    assert "complete after 4 steps" in run_ranks(1, ["harness", run, "--run.dir", "two"], away)
    assert '"rule": "' in run_command([*start, "plan", run, "--gpus", "1", "--json"], project)


FROM, TOP = "from .top import Name", "Name = 1"
PLACES = {
    "a neighbour": ("code_a.py:Name", {"code_a.py": "from code_a_help import Name", "code_a_help.py": "Name = 1"}),
    "a package's file": (
        "code_b/inner/mod.py:Name",
        {"code_b/__init__.py": "", "code_b/inner/__init__.py": "", "code_b/inner/mod.py": "from ..a import *", "code_b/a.py": TOP},
    ),
    "a package's file with an absolute import": (
        "code_c/mod.py:Name",
        {"code_c/__init__.py": "", "code_c/mod.py": "from code_c.top import Name", "code_c/top.py": TOP},
    ),
    "a package's module": ("code_d.mod:Name", {"code_d/__init__.py": "", "code_d/mod.py": FROM, "code_d/top.py": TOP}),
    "a package itself": ("code_e:Name", {"code_e/__init__.py": FROM, "code_e/top.py": TOP}),
    "a package without __init__": ("code_f.mod:Name", {"code_f/mod.py": FROM, "code_f/top.py": TOP}),
    "a package in a folder": ("src/code_g.mod:Name", {"src/code_g/mod.py": FROM, "src/code_g/top.py": TOP}),
    "a name of Python's": ("json.py:Name", {"json.py": "from dataclasses import dataclass\nName = 1"}),
    "a name with a dot": ("code.h.py:Name", {"code.h.py": "from code_h_help import Name", "code_h_help.py": "Name = 1"}),
    "a name with a hyphen": ("code-i.py:Name", {"code-i.py": "Name = 1"}),
    "a second file of one name": ("other/code_a.py:Name", {"other/code_a.py": "Name = 1"}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_found_wherever_it_lies(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named relative to the run file's folder, from another working directory; the resolved name is absolute."""
    name, files = PLACES[place]
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = resolved(name, tmp_path)
    assert found.startswith(str(tmp_path))
    assert resolved(found, Path("/elsewhere")) == found
    assert load_attribute("recipe.use", found) == 1


def test_words_and_installed_modules_stay_as_they_are(tmp_path: Path) -> None:
    assert [resolved(name, tmp_path) for name in ("digits", "json.decoder:JSONDecoder", None)] == [
        "digits",
        "json.decoder:JSONDecoder",
        None,
    ]
    assert load_attribute("recipe.use", "json.decoder:JSONDecoder").__name__ == "JSONDecoder"


@pytest.mark.parametrize(
    ("name", "files", "says"),
    [
        ("no_such_package.mod:Name", {}, "there is no module no_such_package.mod beside the run file, nor is it installed"),
        ("wrong_a.py:Name", {"wrong_a.py": "import no_such_helper"}, "wrong_a.py line 1: ModuleNotFoundError"),
        ("wrong_b.py:Name", {"wrong_b.py": "import wrong_b_help", "wrong_b_help.py": "x = (\n"}, "wrong_b_help.py line 1: "),
        (
            "wrong_c.py:Name",
            {"wrong_c.py": "import wrong_c_help", "wrong_c_help.py": "x = 1\nx / 0\n"},
            "wrong_c_help.py line 2: Zero",
        ),
        ("wrong_d.py:Name", {"wrong_d.py": "import sys\nsys.exit(3)"}, "wrong_d.py line 2: SystemExit: 3"),
        ("wrong_e.py:Name", {"wrong_e.py": "x = 'é'\n".encode("latin-1")}, "'utf-8' codec can't decode"),
        ("wrong_f.py:Name", {"wrong_f.py": "import random", "random.py": ""}, "imports random, which is "),
        ("wrong_g.py", {"wrong_g.py": "Name = 1"}, "write file.py:Name or package.module:Name"),
        ("wrong_h.mod:Nam", {"wrong_h/mod.py": "Name = 1"}, "did you mean Name?"),
        (
            "wrong_i.mod:Name",
            {"wrong_i/__init__.py": "1 / 0", "wrong_i/mod.py": ""},
            "wrong_i/__init__.py line 1: ZeroDivisionError",
        ),
    ],
)
def test_code_that_cannot_be_had_is_one_line(
    name: str, files: dict[str, str | bytes], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UserError) as raised:
        load_attribute("recipe.use", resolved(name, tmp_path))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_second_neighbour_of_one_name_is_refused_and_not_taken_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"task_{folder}.py").write_text("from shared_name import where")
        (tmp_path / folder / "shared_name.py").write_text(f"where = {folder!r}")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_attribute("recipe.use", f"{tmp_path}/first/task_first.py:where") == "first"
    with pytest.raises(UserError, match=r"imports shared_name, which is .*first/shared_name.py already, and not .*second/"):
        load_attribute("watch.use", f"{tmp_path}/second/task_second.py:where")


def test_neighbours_are_read_from_the_text_and_nothing_is_run(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("import os, one\nfrom two.part import x\n\ndef f():\n    from three import y\n\n1 / 0\n")
    for file in ("one.py", "two/__init__.py", "three/only.py", "four.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    assert neighbours(tmp_path / "task.py") == {
        "one": tmp_path / "one.py",
        "two": tmp_path / "two" / "__init__.py",
        "three": tmp_path / "three",
    }
