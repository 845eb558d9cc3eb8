"""Every mistake a user can make in a run file or a flag is one line: the setting, its value, the remedy.

A case is a good run file with one thing wrong. Nothing here may end in a traceback of another kind than UserError.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config.errors import UserError
from harness.config.loader import MAX_BYTES, load
from harness.config.schema import Config
from harness.plan.plan import Plan, plan
from harness.plan.world import Device, World

GOOD: dict[str, Any] = {
    "recipe": {"use": "digits", "samples": 1000},
    "batch": {"reference": 64, "per_gpu": 32},
    "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    "scaling": {"rule": "linear", "warmup_epochs": 1},
    "schedule": {"epochs": 10},
}
GONE = object()
ADAMW: dict[str, Any] = {"optim.name": "adamw", "optim.momentum": GONE}

TEXT = "recipe: {{use: digits, samples: 1000}}\nbatch: {{reference: 64, {}}}\noptim: {{lr: 0.1}}\nschedule: {{epochs: 10}}\n"
"""A run file as it is written, with a place in the section `batch`."""


@dataclass(frozen=True)
class Case:
    """What is wrong (`change` in the file, `flags` over it, or the whole `text`), and what the message must hold."""

    name: str
    setting: str
    says: tuple[str, ...]
    change: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    text: str | bytes | None = None
    gpus: int = 8
    nodes: int = 1
    processes: int | None = None
    device: Device = "gpu"


def changed(change: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of GOOD with dotted settings replaced, or removed where the value is GONE."""
    tree = {section: dict(part) for section, part in GOOD.items()}
    for dotted, value in change.items():
        section, _, name = dotted.partition(".")
        part = tree.setdefault(section, {}) if name else tree
        if value is GONE:
            del part[name or section]
        else:
            part[name or section] = value
    return tree


EXPONENTIAL = {"schedule.shape": "exponential", "schedule.every": 2, "schedule.final_fraction": 0.1}
CASES = [
    # the batch
    Case(
        "total does not divide", "batch.total", ("100", "8 GPUs", "nearest: 96, 104"), {"batch.per_gpu": GONE, "batch.total": 100}
    ),
    Case("total under the world", "batch.total", ("5", "nearest: 8"), {"batch.per_gpu": GONE, "batch.total": 5}),
    Case("micro does not divide", "batch.micro", ("12", "32", "nearest: 8, 16"), {"batch.micro": 12}),
    Case("micro is a word", "batch.micro", ("'some'", "whole number or auto"), {"batch.micro": "some"}),
    Case("micro is zero", "batch.micro", ("0", ">= 1"), {"batch.micro": 0}),
    Case("both batches", "batch", ("per_gpu 32", "total 64", "exactly one"), {"batch.total": 64}),
    Case("neither batch", "batch", ("neither", "per_gpu", "total", "exactly one"), {"batch.per_gpu": GONE}),
    Case("no reference", "batch.reference", ("missing", "--batch.reference"), {"batch.reference": GONE}),
    Case("no batch section", "batch.reference", ("missing", "--batch.reference"), {"batch": GONE}),
    Case("reference is zero", "batch.reference", ("0", ">= 1"), {"batch.reference": 0}),
    Case("per_gpu is negative", "batch.per_gpu", ("-4", ">= 1"), {"batch.per_gpu": -4}),
    Case("per_gpu is a fraction", "batch.per_gpu", ("2.5", "whole number"), {"batch.per_gpu": 2.5}),
    Case("per_gpu is infinite", "batch.per_gpu", ("inf", "whole number"), {"batch.per_gpu": float("inf")}),
    Case("reference is a list", "batch.reference", ("[64]", "whole number"), {"batch.reference": [64]}),
    Case("last is neither", "batch.last", ("'pad'", "keep", "drop"), {"batch.last": "pad"}),
    Case(
        "drop leaves no step",
        "batch.last",
        ("200", "256", "keep"),
        {"schedule": {"samples": 200}, "batch.last": "drop", "scaling": {}, "scaling.rule": "none"},
    ),
    # the schedule
    Case("both lengths", "schedule", ("epochs 10", "samples 500", "exactly one"), {"schedule.samples": 500}),
    Case("neither length", "schedule", ("neither", "epochs", "samples", "exactly one"), {"schedule.epochs": GONE}),
    Case("epochs without the size", "recipe.samples", ("schedule.epochs", "10", "state recipe.samples"), {"recipe.samples": GONE}),
    Case("epochs are nan", "schedule.epochs", ("nan",), {"schedule.epochs": float("nan")}),
    Case("epochs are huge", "schedule.epochs", ("1e+308",), {"schedule.epochs": 1e308}),
    Case("less than a sample", "schedule.epochs", ("0.0001", "1000", "longer"), {"schedule.epochs": 0.0001}),
    Case("step without milestones", "schedule.milestones", ("step", "[30, 60, 80]"), {"schedule.shape": "step"}),
    Case("exponential without every", "schedule.every", ("exponential", "length"), {"schedule.shape": "exponential"}),
    Case("plateau without every", "schedule.every", ("plateau", "length"), {"schedule.shape": "plateau"}),
    Case(
        "inverse_sqrt without warm-up",
        "schedule.shape",
        ("inverse_sqrt", "scaling.warmup_epochs"),
        {"schedule.shape": "inverse_sqrt", "scaling.warmup_epochs": 0},
    ),
    Case(
        "a decay of wsd that begins inside the warm-up",
        "schedule.decay_fraction",
        ("0.5", "5000 samples", "warm-up of 6000", "decay_fraction: 0.4 or scaling.warmup_samples: 5000"),
        {"schedule.shape": "wsd", "schedule.decay_fraction": 0.5, "scaling": {"warmup_samples": 6000}},
    ),
    Case(
        "a decay of wsd over all of a run with a warm-up",
        "schedule.decay_fraction",
        ("1", "warm-up of 1000", "decay_fraction: 0.9"),
        {"schedule.shape": "wsd", "schedule.decay_fraction": 1.0},
    ),
    Case(
        "a milestone inside the warm-up",
        "schedule.milestones",
        ("500 samples", "warm-up of 1000", "scaling.warmup_samples: 500"),
        {"schedule.shape": "step", "schedule.milestones": [8, 0.5]},
    ),
    Case(
        "a batch that grows on a plateau without a limit",
        "batch.most",
        ("on_plateau: grow_batch", "largest global batch"),
        {"schedule.shape": "plateau", "schedule.every": 2, "schedule.on_plateau": "grow_batch"},
    ),
    Case("an end for exponential", "schedule.final_fraction", ("0.1", "exponential", "leave it out", "cosine"), EXPONENTIAL),
    *(
        Case(
            f"{name} for {shape}", f"schedule.{name}", (shape, "does not use it"), {"schedule.shape": shape, f"schedule.{name}": v}
        )
        for name, v, shape in (
            ("final_fraction", 0.1, "inverse_sqrt"),
            ("final_fraction", 0.1, "constant"),
            ("milestones", [3, 6], "cosine"),
            ("gamma", 0.5, "linear"),
            ("every", 2, "cosine"),
            ("decay_fraction", 0.5, "constant"),
            ("threshold", 0.01, "wsd"),
            ("on_plateau", "grow_batch", "linear"),
        )
    ),
    Case("unknown shape", "schedule.shape", ("'triangle'", "cosine"), {"schedule.shape": "triangle"}),
    Case("gamma of one", "schedule.gamma", ("1", "< 1"), {"schedule.gamma": 1.0}),
    Case("final fraction past one", "schedule.final_fraction", ("1.5", "<= 1"), {"schedule.final_fraction": 1.5}),
    Case("final fraction is nan", "schedule.final_fraction", ("nan",), {"schedule.final_fraction": float("nan")}),
    Case("milestones no list", "schedule.milestones", ("30", "list"), {"schedule.milestones": 30}),
    Case("a milestone is text", "schedule.milestones.1", ("'x'", "number"), {"schedule.milestones": [30, "x"]}),
    Case(
        "a milestone of half a sample",
        "schedule.milestones",
        ("10.5", "whole number"),
        {"schedule": {"samples": 5000, "shape": "step", "milestones": [10.5]}},
    ),
    Case(
        "a flag changes the milestones' unit",
        "schedule.milestones",
        ("[3, 6]", "epochs", "--schedule.milestones"),
        {"schedule.shape": "step", "schedule.milestones": [3, 6]},
        {"schedule.samples": "5000"},
    ),
    Case(
        "a flag changes the period's unit",
        "schedule.every",
        ("2", "epochs", "--schedule.every"),
        {"schedule.shape": "exponential", "schedule.every": 2},
        {"schedule.samples": "5000"},
    ),
    # the warm-up
    Case("two warm-ups", "scaling", ("warmup_epochs 1", "warmup_samples 50", "one of them"), {"scaling.warmup_samples": 50}),
    Case("warm-up past the end", "scaling.warmup_epochs", ("20000", "10000", "warmup_fraction"), {"scaling.warmup_epochs": 20}),
    Case(
        "a warm-up past the end, as long again by the rule",
        "scaling.warmup_samples",
        ("76800", "x 8 by the rule", "warmup_fraction: 0.0125"),
        {"scaling": {"rule": "legw", "warmup_samples": 9600}, "batch.reference": 32},
    ),
    Case("warm-up of all", "scaling.warmup_fraction", ("1", "< 1"), {"scaling": {"warmup_fraction": 1.0}}),
    Case("negative warm-up", "scaling.warmup_samples", ("-5", ">= 0"), {"scaling": {"warmup_samples": -5}}),
    # the rule
    Case("unknown rule", "scaling.rule", ("'liner'", "did you mean linear?"), {"scaling.rule": "liner"}),
    Case(
        "adam_sde past its bound",
        "scaling.rule",
        ("adam_sde", "ratio 16", "= 10", "use rule adam"),
        ADAMW | {"scaling.rule": "adam_sde"},
        gpus=32,
    ),
    Case(
        "sde past its bound",
        "scaling.betas",
        ("sde", "ratio 16", "= 10", "half_life"),
        ADAMW | {"scaling.rule": "sqrt", "scaling.betas": "sde"},
        gpus=32,
    ),
    Case("noise without a scale", "scaling.noise_scale", ("noise", "measure it"), {"scaling.rule": "noise"}),
    Case("surge without a scale", "scaling.noise_scale", ("surge", "measure it"), {"scaling.rule": "surge"}),
    Case("scaling.betas for sgd", "scaling.betas", ("half_life", "sgd", "leave it out"), {"scaling.betas": "half_life"}),
    Case("unknown betas", "scaling.betas", ("'power'", "half_life"), {"scaling.betas": "power"}),
    Case("noise scale of zero", "scaling.noise_scale", ("0", "> 0"), {"scaling.noise_scale": 0}),
    # the optimizer
    Case("unknown optimizer", "optim.name", ("'adamv'", "did you mean adam"), {"optim.name": "adamv"}),
    Case("no learning rate", "optim.lr", ("missing", "--optim.lr"), {"optim.lr": GONE}),
    Case("lr is negative", "optim.lr", ("-0.1", "> 0"), {"optim.lr": -0.1}),
    Case("lr is infinite", "optim.lr", ("inf", "finite"), {"optim.lr": float("inf")}),
    Case("lr is nan", "optim.lr", ("nan", "finite"), {"optim.lr": float("nan")}),
    Case("lr is text", "optim.lr", ("'fast'", "give a number"), {"optim.lr": "fast"}),
    Case("lr is true", "optim.lr", ("True", "give a number"), {"optim.lr": True}),
    Case("momentum for adamw", "optim.momentum", ("0.9", "adamw", "leave it out"), {"optim.name": "adamw"}),
    Case("betas for sgd", "optim.betas", ("(0.9, 0.99)", "sgd", "leave it out"), {"optim.betas": [0.9, 0.99]}),
    Case("eps for lars", "optim.eps", ("1e-08", "lars", "leave it out"), {"optim.name": "lars", "optim.eps": 1e-8}),
    Case("one beta", "optim.betas", ("[0.9]", "[0.9, 0.999]"), ADAMW | {"optim.betas": [0.9]}),
    Case("three betas", "optim.betas", ("[0.9, 0.99, 0.999]",), ADAMW | {"optim.betas": [0.9, 0.99, 0.999]}),
    Case("beta of one", "optim.betas.1", ("1", "< 1"), ADAMW | {"optim.betas": [0.9, 1.0]}),
    Case("negative decay", "optim.weight_decay", ("-1", ">= 0"), {"optim.weight_decay": -1}),
    Case(
        "nesterov without momentum",
        "optim.momentum",
        ("0", "nesterov", "give 0.9"),
        {"optim.name": "nesterov", "optim.momentum": 0.0},
    ),
    # the rest of the run file
    Case(
        "two eval cadences",
        "eval",
        ("every_epochs 1", "every_samples 100", "one of them"),
        {"eval": {"every_epochs": 1, "every_samples": 100}},
    ),
    Case(
        "two checkpoint cadences",
        "checkpoint",
        ("every_epochs 2", "every_samples 7", "one of them"),
        {"checkpoint": {"every_epochs": 2, "every_samples": 7}},
    ),
    *(
        Case(f"{setting} below one sample", setting, ("1e-06 epochs", "less than one of"), {setting: 1e-6})
        for setting in ("schedule.epochs", "eval.every_epochs", "eval.patience_epochs", "checkpoint.every_epochs")
    ),
    Case(
        "warm-up below one sample", "scaling.warmup_epochs", ("1e-06 epochs", "less than one of"), {"scaling.warmup_epochs": 1e-6}
    ),
    *(
        Case(
            f"shape {shape} with a drop every less than one sample",
            "schedule.every",
            ("1e-06 epochs",),
            {"schedule.shape": shape, "schedule.every": 1e-6},
        )
        for shape in ("exponential", "plateau")
    ),
    Case("an improvement that nothing waits for", "eval.min_delta", ("0.1", "eval.patience_epochs"), {"eval.min_delta": 0.1}),
    Case("fp16 on a CPU", "precision", ("fp16", "CPU", "bf16"), {"precision": "fp16"}, device="cpu"),
    Case("unknown precision", "precision", ("'int8'", "bf16"), {"precision": "int8"}),
    Case("unknown section", "optimizer", ("unknown section", "did you mean optim?"), {"optimizer": {"lr": 0.1}}),
    Case("unknown setting", "optim.learning_rate", ("0.1", "known: name, lr"), {"optim.learning_rate": 0.1}),
    Case("misspelt setting", "batch.per_gpus", ("8", "did you mean per_gpu?"), {"batch.per_gpus": 8}),
    Case("a section is a number", "schedule", ("90", "schedule: {...}"), {"schedule": 90}),
    Case("a section that must say something is empty", "batch.reference", ("missing", "--batch.reference"), {"batch": None}),
    Case("a flag of a flat setting's child", "precision", ("{'x': 1}", "bf16"), flags={"precision.x": "1"}),
    Case(
        "a flat flag and its child",
        "--precision.x",
        ("1", "'fp32'", "one of them"),
        flags={"precision": "fp32", "precision.x": "1"},
    ),
    Case("seed too large", "run.seed", ("4294967296", "<= 4294967295"), {"run": {"seed": 2**32}}),
    Case("a number past all", "optim.lr", ("100000", "give a number"), {"optim.lr": 10**400}),
    Case("a recipe that is a number", "recipe.use", ("3", "give text"), {"recipe.use": 3}),
    Case("a switch that is a number", "compute.compile", ("1", "true or false"), {"compute": {"compile": 1}}),
    Case("a choice that is a number", "eval.better", ("2", "choose lower or higher"), {"eval": {"better": 2}}),
    Case("keys that are a list", "backend.deepspeed", ("[1]", "mapping of names"), {"backend": {"deepspeed": [1]}}),
    Case("a key that is a number", "backend.deepspeed", ("{1: 2}", "mapping of names"), {"backend": {"deepspeed": {1: 2}}}),
    Case("a flag that is not YAML", "batch.total", ("'[1'", "quote it"), flags={"batch.total": "[1"}),
    Case("a flag of the wrong type", "batch.total", ("'many'", "whole number"), flags={"batch.total": "many"}),
    # the world
    Case("nodes do not divide", "--nodes", ("8 ranks", "3 nodes", "multiple of 3"), nodes=3),
    Case(
        "a simulated world that does not divide",
        "--simulate-world",
        ("6 ranks", "4 processes", "multiple of 4"),
        gpus=6,
        processes=4,
    ),
    Case("no GPUs", "--gpus", ("0", "at least 1"), gpus=0),
    # the file itself
    Case("a key twice", "batch", ("twice", "line 2", "keep one"), text="batch: {reference: 1}\nbatch: {total: 1}\n"),
    Case("a setting twice", "reference", ("twice", "line 3", "keep one"), text="batch:\n  reference: 1\n  reference: 2\n"),
    Case("not YAML", "run file", ("line 2", "not YAML", "fix that line"), text="batch: {reference: 64\noptim: ]\n"),
    Case("not text", "run file", ("not UTF-16",), text=b"\xff\xfe\x00\x01\x9d"),
    Case("latin-1", "run file", ("line 2", "0xe9", "not UTF-8", "save it as UTF-8"), text="# a\n# caf\xe9\n".encode("latin-1")),
    # lengths in steps: how many samples they are, and where these go
    Case(
        "warm-up in steps", "scaling.warmup_steps", ("500", "warmup_samples: 32000", "reference 64"), {"scaling.warmup_steps": 500}
    ),
    Case("warm-up in steps by a flag", "scaling.warmup_steps", ("warmup_samples: 32000",), flags={"scaling.warmup_steps": "500"}),
    Case("warm-up in steps elsewhere", "optim.warmup_iters", ("scaling.warmup_samples: 640",), {"optim.warmup_iters": 10}),
    Case("warm-up in steps at the top", "warmup_steps", ("scaling.warmup_samples: 640",), {"warmup_steps": 10}),
    Case("evaluation in steps", "eval.every_steps", ("eval.every_samples: 6400",), {"eval.every_steps": 100}),
    Case("patience in steps", "eval.patience_steps", ("eval.patience_samples: 64",), {"eval.patience_steps": 1}),
    Case("saves in steps", "checkpoint.save_steps", ("checkpoint.every_samples: 64",), {"checkpoint.save_steps": 1}),
    Case("the run in steps", "schedule.max_steps", ("schedule.samples: 64000",), {"schedule.max_steps": 1000}),
    Case(
        "steps at the batch now",
        "scaling.warmup_steps",
        ("warmup_samples: 32000", "batch.total 4096 2,048,000"),
        {"scaling.warmup_steps": 500, "batch.per_gpu": GONE, "batch.total": 4096},
    ),
    Case("steps in words", "scaling.warmup_steps", ("steps x batch",), {"scaling.warmup_steps": "many"}),
    # numbers and names written in another way
    Case("an underscore", "batch.per_gpu", ("1_000", "write 1000"), text=TEXT.format("per_gpu: 1_000")),
    Case("a whole number as a float", "batch.per_gpu", ("1000.0", "write 1000"), text=TEXT.format("per_gpu: 1e3")),
    Case("a sexagesimal", "batch.per_gpu", ("'1:30'", "whole number"), text=TEXT.format("per_gpu: 1:30")),
    Case("a sexagesimal flag", "batch.per_gpu", ("'1:30'", "whole number"), flags={"batch.per_gpu": "1:30"}),
    Case("capitals of a choice", "precision", ("'BF16'", "did you mean bf16?"), {"precision": "BF16"}),
    Case("capitals of a backend", "backend.name", ("'FSDP'", "did you mean fsdp?"), {"backend.name": "FSDP"}),
    Case("capitals beside a number", "batch.micro", ("'AUTO'", "did you mean auto?"), {"batch.micro": "AUTO"}),
    Case("capitals of an optimizer", "optim.name", ("'SGD'", "did you mean sgd?"), {"optim.name": "SGD"}),
    Case("capitals of a rule", "scaling.rule", ("'LINEAR'", "did you mean linear?"), {"scaling.rule": "LINEAR"}),
    Case("capitals of a setting", "optim.LR", ("did you mean lr?",), {"optim.LR": 1.0}),
    Case("capitals of a section", "BATCH", ("did you mean batch?",), {"BATCH": {}}),
    Case("a list at the top", "run file", ("list", "sections"), text="- batch\n- optim\n"),
    Case("an empty file", "run file", ("nothing", "sections"), text=""),
    Case("too large", "run file", (str(MAX_BYTES + 1), f"at most {MAX_BYTES}"), text="#" * (MAX_BYTES + 1)),
    Case("an alias", "run file", ("aliases (*name) are not allowed", "line 2"), text="recipe: &x {use: digits}\nbatch: *x\n"),
    Case("a Python object", "run file", ("python/object", "line 1"), text="recipe: {use: !!python/object/apply:os.system [ls]}\n"),
    Case("a list as a key", "run file", ("not YAML", "line 1"), text="? [1, 2]\n: 3\n"),
    Case("nested too deep", "run file", ("nested",), text="recipe: {x: " + "[" * 5000 + "]" * 5000 + "}\n"),
    Case("a number that is none", "run file", ("not YAML",), text="recipe: {x: !!int one}\n"),
    Case("bytes", "recipe.x", ("b'hi'", "bytes", "quotes"), text="recipe: {x: !!binary aGk=}\n"),
    Case("a mapping as a knob", "recipe.width", ("{'a': 1}", "number, text"), {"recipe.width": {"a": 1}}),
]


def plan_of(case: Case, folder: Path) -> tuple[Config, Plan]:
    """Write the case's run file, load it under its flags and plan it on its world."""
    file = folder / "run.yaml"
    text = yaml.safe_dump(changed(case.change)) if case.text is None else case.text
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = load(file, case.flags)
    return config, plan(config, World(case.gpus, case.nodes, case.device, case.processes))


def check_line(error: UserError, setting: str, says: tuple[str, ...]) -> None:
    """One line, `setting: problem; remedy`, with every fragment in it."""
    line = str(error)
    assert "\n" not in line
    assert line.removeprefix("--").startswith(f"{setting.removeprefix('--')}: "), line
    before, mark, remedy = line.partition("; ")
    assert mark, f"no remedy: {line}"
    assert len(remedy.strip()) > 5, f"no remedy: {line}"
    assert before != f"{setting}: ", f"no problem: {line}"
    assert [s for s in says if s not in line] == [], line
    assert len(line) < 400, line


def test_the_file_the_cases_change_is_good(tmp_path: Path) -> None:
    _, made = plan_of(Case("good", "", ()), tmp_path)
    assert made.global_batch == 256


def test_every_case_has_its_own_name() -> None:
    assert len({c.name for c in CASES}) == len(CASES) >= 45


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_a_mistake_is_one_line_with_setting_value_and_remedy(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        plan_of(case, tmp_path)
    check_line(raised.value, case.setting, case.says)


def test_a_missing_run_file_is_named() -> None:
    with pytest.raises(UserError) as raised:
        load(Path("no/such/run.yaml"))
    check_line(raised.value, "run file", ("no/such/run.yaml", "No such file", "widebatch configs"))


def test_a_folder_is_no_run_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(tmp_path)
    check_line(raised.value, "run file", (str(tmp_path), "directory"))


@pytest.mark.parametrize(
    ("name", "source", "rule", "says"),
    [
        ("missing file", None, "mine.py:half", ("mine.py", "no file", "path")),
        ("missing attribute", "def halve(k): return 1.0\n", "mine.py:half", ("'half'", "did you mean halve?")),
        ("nothing in it", "", "mine.py:half", ("'half'", "define half")),
        ("syntax error", "x = 1\ndef half(k: return 1\n", "mine.py:half", ("mine.py line 2", "fix that line")),
        ("error at import", "import no_such_module\n", "mine.py:half", ("mine.py line 1", "ModuleNotFoundError", "no_such_module")),
        ("no function", "half = 3\n", "mine.py:half", ("None", "positive lr factor")),
        ("text", "def half(k): return 'x'\n", "mine.py:half", ("'x'", "ratio 4", "positive lr factor")),
        ("failing", "def half(k): return 1 / 0\n", "mine.py:half", ("ZeroDivisionError", "fix the function")),
        ("negative", "def half(k): return -k\n", "mine.py:half", ("-4", "positive lr factor")),
        ("nan", "def half(k): return float('nan')\n", "mine.py:half", ("nan", "positive lr factor")),
        ("nothing", "def half(k): pass\n", "mine.py:half", ("None", "positive lr factor")),
        ("not a Python file", "", "mine.pyc:half", ("no module mine.pyc", "file.py:Name")),
    ],
)
def test_a_faulty_custom_rule_is_one_line(name: str, source: str | None, rule: str, says: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / f"{name.replace(' ', '_')}.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(UserError) as raised:
        plan_of(Case(name, "", (), {"scaling.rule": rule.replace("mine", file.stem)}), tmp_path)
    check_line(raised.value, "scaling.rule", tuple(s.replace("mine", file.stem) for s in says))


def test_a_custom_rule_that_failed_to_import_can_be_mended_and_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mended_rule.py"
    case = Case("repaired", "", (), {"scaling.rule": "mended_rule.py:half"})
    file.write_text("def half(k): return k / 2\nimport no_such_module\n")
    with pytest.raises(UserError):
        plan_of(case, tmp_path)
    file.write_text("def half(k): return k / 2  # repaired\n")
    _, made = plan_of(case, tmp_path)
    assert made.target_lr == pytest.approx(0.1 * 4 / 2)
