"""The wheel in a base install, without what only an extra brings, outside a checkout: run by `make test-base`.

The tests themselves run in the development environment, and drive the Python of .venv-base, into which they install the wheel.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, environ, run_command
from tests.support.readmes import COMMANDS, write_examples
from tests.support.wandb_record import history

pytestmark = pytest.mark.base
BIN = ROOT / ".venv-base" / "bin"
EXTRAS = {
    "widebatch dashboard": "pip install 'widebatch[dashboard]'",
    "--watch.trackers '[tensorboard]'": "pip install tensorboard",
    "widebatch train chat.yaml": "pip install 'widebatch[hf]'",
}
"""Commands of the READMEs that want more than the base, and what they then say."""
DEMO = "widebatch launch configs/digits.yaml --gpus 0 --procs 2"
AFTER_EXTRAS = ("python tiny_chat.py", "widebatch export runs/chat", "python configs/examples/lightning_run.py")
"""Commands that need what an extra brings, or a run that could not be."""
OTHERS = [command for command in COMMANDS if not command.startswith(("make ", *AFTER_EXTRAS)) and command != DEMO]


PACKAGES, FILES = ("harness", "launch", "configs"), ("pyproject.toml", "README.md", "LICENSE")
"""What a wheel is built from."""


@pytest.fixture(scope="module", autouse=True)
def wheel(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The wheel of this checkout, in the base environment. It is built elsewhere: no file of an earlier build gets into it."""
    place = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / name, symlinks=True)
    for name in FILES:
        shutil.copy2(ROOT / name, place)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    run_command([sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", "."], place)
    (built,) = (place / "dist").glob("*.whl")
    run_command([str(BIN / "python"), *pip, "install", "--no-deps", "--no-index", "--force-reinstall", str(built)], place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the run files, as `widebatch configs` copies them, and the files that the READMEs tell one to write."""
    folder = tmp_path_factory.mktemp("base")
    run_installed([str(BIN / "widebatch"), "configs", "--to", "configs"], folder)
    (folder / "configs" / "examples").symlink_to(ROOT / "configs" / "examples")  # scripts to read in a checkout, not in the wheel
    return write_examples(folder)


def run_installed(argv: list[str], cwd: Path, *, status: int = 0) -> str:
    """Run a command of the base environment, in which nothing leads to this checkout."""
    return run_command(["env", "-u", "PYTHONPATH", *argv], cwd, status=status)


def test_the_environment_has_nothing_but_the_base() -> None:
    code = "from importlib.util import find_spec\nprint([m for m in %r if find_spec(m)])"
    extras = ["transformers", "timm", "pytorch_optimizer", "matplotlib", "tensorboard", "wandb_workspaces", "pytest"]
    assert run_installed([str(BIN / "python"), "-c", code % extras], BIN.parent).strip() == "[]"


def test_the_packages_and_their_run_files_are_those_of_the_wheel(folder: Path) -> None:
    code = "import harness, launch; print(harness.__file__, launch.__file__)"
    paths = run_installed([str(BIN / "python"), "-c", code], folder).split()
    assert all(path.startswith(f"{BIN.parent}/lib/") for path in paths), paths
    shipped = {path.name: path.read_text() for path in (ROOT / "configs").iterdir() if path.suffix in (".yaml", ".json")}
    assert {path.name: path.read_text() for path in (folder / "configs").iterdir() if path.is_file()} == shipped


def test_demo_runs_where_there_is_no_run_file(tmp_path: Path) -> None:
    output = run_installed([str(BIN / "widebatch"), "demo", "--run.stop_after_steps", "20"], tmp_path)
    assert "stop_after_steps after 20 steps" in output
    (run,) = (tmp_path / "runs").glob("digits-*")
    assert run.name in run_installed([str(BIN / "widebatch"), "report", str(run), "--text"], tmp_path)


def test_the_demo_tells_w_and_b_everything_and_shows_no_traceback(folder: Path) -> None:
    assert DEMO in run_command(["make", "--dry-run", "demo"], ROOT)
    output = run_installed([str(BIN / "widebatch"), *DEMO.split()[1:], "--run.dir", "demo"], folder)
    logs = "".join(log.read_text() for log in (folder / "demo" / "logs").glob("*.log"))
    assert "complete after 674 steps" in output
    for word in ("Traceback", "warn ", "Error"):
        assert word not in output + logs
    lines = [json.loads(line) for line in (folder / "demo" / "events.jsonl").read_text().splitlines()]
    samples = {
        kind: [line["samples"] for line in lines if line["event"] == kind] for kind in ("window", "eval", "examples", "step")
    }
    told = history(folder / "demo")
    points = [row["progress/samples"] for row in told if "progress/train_s" in row]
    assert len(points) == len(samples["window"]) + len(samples["eval"])
    assert points[-1] == samples["window"][-1] == samples["step"][-1]
    pictures = [row["progress/samples"] for row in told if any(name.startswith("eval/examples") for name in row)]
    assert pictures == samples["examples"]
    assert len(samples["examples"]) >= 5


@pytest.mark.parametrize("command", OTHERS)
def test_every_command_of_the_readme_runs_or_says_what_to_install(command: str, folder: Path) -> None:
    """Among them DeepSpeed's zero3, without transformers. Long runs of digits are cut short: here it is the start that counts."""
    trains = re.search(r"widebatch (train|launch)|-m harness", command) and "--dry-run" not in command
    short = " --run.stop_after_steps 20" if trains and "digits" in command and "runs/" not in command else ""
    argv = [f"PATH={BIN}:{environ()['PATH']}", "sh", "-c", command + short]
    wanted = next((says for part, says in EXTRAS.items() if part in command), None)
    output = run_installed(argv, folder, status=2 if wanted else 0)
    assert "Traceback" not in output
    if wanted:
        assert output.startswith("error: ")
        assert (output.count("\n"), wanted in output) == (1, True), output
    elif trains:
        assert re.search(r"complete after|stop_after_steps after", output)


IMPORTS = """
import importlib, pkgutil
import harness, launch

names = [m.name for top in (harness, launch) for m in pkgutil.walk_packages(top.__path__, top.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_imports() -> None:
    files = [f for top in ("harness", "launch") for f in (ROOT / top).rglob("*.py") if f.parent.name not in ("harness", "launch")]
    assert int(run_installed([str(BIN / "python"), "-c", IMPORTS], BIN.parent)) > len(files)


FEATURES: list[tuple[dict[str, Any], str]] = [
    ({"optim.name": "lamb"}, "pip install 'widebatch[optimizers]'"),
    ({"optim.name": "lion"}, "pip install 'widebatch[optimizers]'"),
    (
        {"recipe.use": "images", "recipe.root": "pictures", "recipe.net": "timm:resnet18", "recipe.size": 16},
        "pip install 'widebatch[vision]'",
    ),
    ({"recipe.use": "causal_lm", "recipe.kind": "gpt2"}, "pip install 'widebatch[hf]'"),
    ({"recipe.use": "causal_lm", "recipe.folder": "."}, "pip install 'widebatch[hf]'"),
    ({"recipe.use": "causal_lm", "recipe.kind": "gpt2", "recipe.tokenizer": "."}, "pip install 'widebatch[hf]'"),
    ({"watch.trackers": ["tensorboard"]}, "pip install tensorboard"),
    ({"watch.trackers": ["mlflow"]}, "pip install mlflow"),
    ({"watch.trackers": ["trackio"]}, "pip install trackio"),
]
ASK = """
import contextlib, io, json, sys
from pathlib import Path
from PIL import Image
from launch.cli import main

for split in ("train", "val"):
    for kind in "ab":
        Path("pictures", split, kind).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(Path("pictures", split, kind, "0.png"))
told = []
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        told.append([main(argv), said.getvalue()])
print("TOLD " + json.dumps(told))
"""


def test_a_feature_that_wants_an_extra_says_so_in_a_line_before_training_starts(tmp_path: Path) -> None:
    commands = []
    for number, (settings, _) in enumerate(FEATURES):
        tree: dict[str, Any] = {
            "recipe": {"use": "digits"},
            "batch": {"reference": 2, "total": 2},
            "optim": {"lr": 0.01},
            "scaling": {"rule": "none"},
            "schedule": {"samples": 8},
            "watch": {"wandb": "off"},
            "run": {"dir": f"run-{number}"},
        }
        for name, value in settings.items():
            section, _, setting = name.partition(".")
            tree[section][setting] = value
        (tmp_path / f"{number}.yaml").write_text(json.dumps(tree))
        commands.append(["train", f"{number}.yaml"])
    output = run_installed([str(BIN / "python"), "-c", ASK, json.dumps(commands)], tmp_path)
    told = json.loads(output.split("TOLD ")[1])
    for (settings, wanted), (status, said) in zip(FEATURES, told, strict=True):
        assert status == 2, (settings, said)
        assert said.count("\n") == 1, (settings, said)
        assert wanted in said, settings
    assert not [path for path in tmp_path.glob("run-*") if (path / "events.jsonl").exists()]


def test_a_series_of_runs_says_first_that_its_plots_will_be_text() -> None:
    code = "from harness.watch.progress import series\nwith series('sweep', 2) as told:\n    told('first')"
    said, first = run_installed([str(BIN / "python"), "-c", code], BIN.parent).splitlines()
    assert said == "note: plots will be text, as matplotlib is not installed: pip install 'widebatch[report]'"
    assert first == "1/2 first"
