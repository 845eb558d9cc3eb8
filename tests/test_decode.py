"""A run file is read as YAML 1.2, flags lie over it, and a resolved config written out reads back as itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.plan.config import EXCLUSIVE, Config
from harness.plan.decode import decode, encode, fields_of, load
from harness.plan.flags import field_docs
from harness.plan.text import to_yaml

SETTINGS = 101
"""The run file does not grow past this: a new setting needs an old one to go."""

BASE = """
recipe: {use: digits, samples: 1000}
batch: {reference: 64, per_gpu: 32}
optim: {lr: 0.1}
schedule: {epochs: 10}
"""


def read(tmp_path: Path, text: str = BASE, /, **flags: str) -> Config:
    """Load `text` under flags whose dots are written as double underscores."""
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return load(file, {k.replace("__", "."): v for k, v in flags.items()})


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    assert read(tmp_path).guard.budget == 10
    assert read(tmp_path, BASE + "guard: {budget: 3}\n").guard.budget == 3
    assert read(tmp_path, BASE + "guard: {budget: 3}\n", guard__budget="7").guard.budget == 7
    assert read(tmp_path, guard__budget="7").guard.budget == 7


def test_a_flag_changes_its_own_setting_only(tmp_path: Path) -> None:
    plain, changed = read(tmp_path), read(tmp_path, optim__lr="0.5")
    assert changed == dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, lr=0.5))


def test_a_flag_without_a_section_sets_a_flat_setting(tmp_path: Path) -> None:
    assert read(tmp_path, BASE + "precision: bf16\n").precision == "bf16"
    assert read(tmp_path, BASE + "precision: bf16\n", precision="fp64").precision == "fp64"


@pytest.mark.parametrize(
    ("flag", "value", "gone"),
    [
        ("batch.total", "4096", ["batch.per_gpu"]),
        ("schedule.samples", "500", ["schedule.epochs"]),
        ("scaling.warmup_samples", "10", ["scaling.warmup_epochs"]),
        ("scaling.warmup_fraction", "0.1", ["scaling.warmup_epochs"]),
        ("eval.every_samples", "10", ["eval.every_epochs"]),
        ("checkpoint.every_samples", "10", ["checkpoint.every_epochs"]),
    ],
)
def test_a_flag_replaces_the_files_choice_of_its_exclusive_group(tmp_path: Path, flag: str, value: str, gone: list[str]) -> None:
    text = BASE + "scaling: {warmup_epochs: 1}\neval: {every_epochs: 1}\ncheckpoint: {every_epochs: 1}\n"
    before, after = encode(read(tmp_path, text)), encode(read(tmp_path, text, **{flag: value}))
    for dotted in gone:
        section, name = dotted.split(".")
        assert before[section][name] is not None
        assert after[section][name] is None
    section, name = flag.split(".")
    assert after[section][name] == yaml.safe_load(value)


def test_the_exclusive_groups_name_settings_that_exist() -> None:
    assert [s for group in EXCLUSIVE for s in group if s not in field_docs()] == []


def test_milestones_may_be_given_with_their_new_unit(tmp_path: Path) -> None:
    text = BASE.replace("epochs: 10", "epochs: 10, shape: step, milestones: [3, 6]")
    config = read(tmp_path, text, schedule__samples="5000", schedule__milestones="[1000, 2000]")
    assert (config.schedule.epochs, config.schedule.samples, config.schedule.milestones) == (None, 5000, (1000, 2000))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("2.5e-4", 2.5e-4), ("-1e3", -1e3), ("+1e3", 1e3), (".5e1", 5.0), ("1.e2", 100.0), ("3", 3)],
)
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, text: str, number: float) -> None:
    from_file = read(tmp_path, BASE.replace("use: digits", f"use: digits, knob: {text}")).recipe.knobs["knob"]
    from_flag = read(tmp_path, recipe__knob=text).recipe.knobs["knob"]
    assert from_file == from_flag == number
    assert type(from_file) is type(number)


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "y", "e3", "1e", "1e-", "12a"])
def test_words_are_words(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, recipe__knob=word).recipe.knobs["knob"] == word


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("[1, 2.5, x]", [1, 2.5, "x"]), ("null", None)])
def test_flags_are_read_as_yaml(tmp_path: Path, text: str, value: Any) -> None:
    assert read(tmp_path, recipe__knob=text).recipe.knobs == {"knob": value}


def test_wandb_can_be_off_without_quotes(tmp_path: Path) -> None:
    assert read(tmp_path, BASE + "watch: {wandb: off}\n").watch.wandb == "off"


def test_code_in_the_file_is_found_beside_the_file_and_code_in_a_flag_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    text = (
        BASE.replace("use: digits", "use: 'task.py:Mine'")
        + "scaling: {rule: 'sub/r.py:f'}\nwatch: {use: ['w.py:A', '/abs/w.py:B']}\n"
    )
    config = read(tmp_path, text)
    assert config.recipe.use == f"{tmp_path}/task.py:Mine"
    assert config.scaling.rule == f"{tmp_path}/sub/r.py:f"
    assert config.watch.use == (f"{tmp_path}/w.py:A", "/abs/w.py:B")
    over = read(tmp_path, text, recipe__use="task.py:Mine", scaling__rule="r.py:f", watch__use="['w.py:A']")
    assert (over.recipe.use, over.scaling.rule, over.watch.use) == (f"{here}/task.py:Mine", f"{here}/r.py:f", (f"{here}/w.py:A",))


def test_built_in_names_are_left_alone(tmp_path: Path) -> None:
    config = read(tmp_path, BASE + "scaling: {rule: adam}\n")
    assert (config.recipe.use, config.scaling.rule) == ("digits", "adam")


def test_any_other_key_of_the_recipe_is_a_knob(tmp_path: Path) -> None:
    config = read(tmp_path, BASE.replace("use: digits", "use: digits, width: 96"), recipe__depth="3")
    assert config.recipe.knobs == {"width": 96, "depth": 3}
    assert (config.recipe.use, config.recipe.samples) == ("digits", 1000)


KNOBS = st.dictionaries(
    st.from_regex(r"[a-z]{2,8}_", fullmatch=True),
    st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=3),
    max_size=3,
)
TREES = st.fixed_dictionaries(
    {
        "batch": st.fixed_dictionaries(
            {"reference": st.integers(1, 10**6)},
            optional={"per_gpu": st.integers(1, 99), "micro": st.integers(1, 99) | st.just("auto")},
        ),
        "optim": st.fixed_dictionaries(
            {"lr": st.floats(1e-9, 1e3)},
            optional={"betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), "name": st.text(max_size=9)},
        ),
        "schedule": st.fixed_dictionaries(
            {}, optional={"epochs": st.floats(0.1, 1e3), "milestones": st.lists(st.floats(0.1, 90), max_size=3)}
        ),
    },
    optional={"recipe": KNOBS, "precision": st.sampled_from(["fp32", "bf16"]), "watch": st.just({"use": ["a.py:A"]})},
)


@settings(deadline=None)
@given(tree=TREES)
def test_a_config_written_out_reads_back_as_itself(tree: dict[str, Any]) -> None:
    config = decode(tree)
    assert decode(encode(config)) == config
    assert encode(decode(encode(config))) == encode(config)


@settings(deadline=None)
@given(tree=TREES)
@example(tree={"batch": {"reference": 1}, "optim": {"lr": 1.0}, "schedule": {}, "recipe": {"a_": "0E0", "b_": "off", "c_": 1e-300}})
def test_a_config_survives_a_trip_through_a_yaml_file(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    config = decode(tree | {"watch": {}})
    file = tmp_path_factory.getbasetemp() / "round.yaml"
    file.write_text(to_yaml(encode(config)))
    assert load(file) == config


def test_decode_leaves_its_input_alone() -> None:
    tree: dict[str, Any] = {"recipe": {"width": 3}, "batch": {"reference": 1}, "optim": {"lr": 1.0}, "schedule": {}}
    decode(tree)
    assert tree == {"recipe": {"width": 3}, "batch": {"reference": 1}, "optim": {"lr": 1.0}, "schedule": {}}


def every_setting() -> list[str]:
    """The dotted names of all settings, from the types, as field_docs has them from the source text."""
    names = []
    for f in dataclasses.fields(Config):
        inner = fields_of(f.name)
        names += [f"{f.name}.{n}" for n in inner] or [f.name]
    return names


def test_each_setting_has_a_docstring_under_it_in_the_files_order() -> None:
    docs = {k: v for k, v in field_docs().items() if k != "recipe.knobs"}
    assert list(docs) == every_setting()
    assert [k for k, v in docs.items() if len(v) < 12 or not v.rstrip().endswith(".")] == []


def test_the_run_file_does_not_grow() -> None:
    assert len(field_docs()) == SETTINGS, "a run file must stay small enough to know: say here that it grew"
