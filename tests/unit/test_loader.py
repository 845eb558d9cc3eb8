"""A run file is read as YAML 1.2, flags lie over it, and a resolved config written out reads back as itself."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.config.field_docs import field_docs
from harness.config.loader import decode, encode, fields_of, load
from harness.config.schema import EXCLUSIVE, Config
from harness.config.yaml_text import from_yaml, to_yaml

SETTINGS = 136
"""The run file does not grow past this: a new setting needs an old one to go, or a reason (threshold, alpha: of
torch; min_delta: of Keras and Lightning; sample_tokens, parameters, total_tokens, tokens, tokens_per_parameter: language models are
planned in tokens; init_from, init_partial: weights of others, whole or in part;
entity, group, name, job_type, tags, notes: what a run is called in W&B;
section reference and horizon_exponent: rates for another horizon;
steps, stage_lr: batches by position, as Megatron-LM and OLMo-core have them; lr_source: the fit that gave lr)."""

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


@pytest.mark.parametrize(
    ("flag", "text", "number"),
    [
        ("batch.total", "2k", 2000),
        ("schedule.samples", "0.5M", 500_000),
        ("schedule.tokens", "1.5B", 1_500_000_000),
        ("schedule.tokens", "2T", 2 * 10**12),
        ("recipe.parameters", "124.4M", 124_400_000),
        ("scaling.warmup_samples", "0k", 0),
        ("eval.every_samples", "10k", 10_000),
    ],
)
def test_amounts_are_written_with_k_m_b_t_in_file_and_flag(tmp_path: Path, flag: str, text: str, number: int) -> None:
    section, name = flag.split(".")
    by_flag = encode(read(tmp_path, **{flag: text}))
    tree = yaml.safe_load(BASE)
    tree[section] = {**tree.get(section, {}), name: text}
    tree["batch" if section == "batch" else "schedule"].pop({"batch": "per_gpu", "schedule": "epochs"}.get(section, ""), None)
    assert by_flag[section][name] == encode(decode(tree))[section][name] == number


@pytest.mark.parametrize("text", ["0.5k5", "10G", "0.0005k", "1m", "5 M"])
def test_an_amount_that_is_no_whole_number_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, schedule__samples=text)
    assert caught.value.setting == "schedule.samples"
    assert "whole number" in caught.value.remedy


def test_the_reference_may_be_a_mapping_that_a_flag_changes_in_part(tmp_path: Path) -> None:
    text = BASE.replace("reference: 64", "reference: {batch: 64, tokens: 10B, parameters: 124M}")
    plain = BASE + "reference: {tokens: 10000000000, parameters: 124000000}\n"
    assert read(tmp_path, text) == read(tmp_path, plain)
    changed = read(tmp_path, text, batch__reference="32", reference__samples="1M")
    assert (changed.batch.reference, changed.reference.samples, changed.reference.tokens) == (32, 1_000_000, None)
    assert changed.reference.parameters == 124_000_000
    for bad, setting in (("{tokens: 1B}", "batch.reference"), ("{batch: 8, token: 1B}", "reference.token")):
        with pytest.raises(UserError) as caught:
            read(tmp_path, BASE.replace("reference: 64", f"reference: {bad}"))
        assert caught.value.setting == setting


def test_milestones_in_amounts_are_numbers(tmp_path: Path) -> None:
    config = read(tmp_path, schedule__samples="1M", schedule__shape="step", schedule__milestones="[100k, 0.5M, 600000]")
    assert config.schedule.milestones == (100_000, 500_000, 600_000)


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("064", 64), ("010", 10), ("-007", -7), ("+5", 5), ("089", 89), ("0", 0), ("00", 0), ("0o17", 15), ("0x1F", 31),
        (".5", 0.5), ("5.", 5.0), ("010.5", 10.5), ("-.5", -0.5), ("1e03", 1000.0), (".inf", float("inf")),
        ("-.Inf", float("-inf")), ("~", None), ("null", None), ("TRUE", True), ("1:30", "1:30"), ("190:20:30", "190:20:30"),
        ("-1:30.5", "-1:30.5"), ("1_000", "1_000"), ("1_0.5", "1_0.5"), ("0b11", "0b11"), ("0o9", "0o9"),
        ("2024-01-01", "2024-01-01"), ("2024-01-01 10:00:00", "2024-01-01 10:00:00"), ("=", "="), ("No", "No"), ("ON", "ON"),
        ("inf", "inf"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2_and_all_else_is_text(tmp_path: Path, text: str, value: Any) -> None:
    """In the file and as a flag alike; and text that looks like a number comes back as text from the resolved run file."""
    from_file = read(tmp_path, BASE.replace("use: digits", f"use: digits, knob: {text}")).recipe.knobs["knob"]
    from_flag = read(tmp_path, recipe__knob=text).recipe.knobs["knob"]
    assert (from_file, type(from_file)) == (from_flag, type(from_flag)) == (value, type(value))
    quoted = to_yaml({"recipe": {"knob": text}})
    assert from_yaml(quoted) == yaml.safe_load(quoted) == {"recipe": {"knob": text}}


def test_lengths_with_leading_zeros_are_decimal(tmp_path: Path) -> None:
    text = BASE.replace("64, per_gpu: 32", "032, total: 064").replace("epochs: 10", "samples: 0640")
    config = read(tmp_path, text + "scaling: {warmup_samples: 0100}\n")
    assert (config.batch.reference, config.batch.total, config.schedule.samples, config.scaling.warmup_samples) == (
        32,
        64,
        640,
        100,
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "bom.yaml"
    file.write_text(BASE.replace("digits", "café"), encoding=encoding)
    assert load(file).recipe.use == "café"


def test_a_section_with_nothing_in_it_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """As where all of its lines are comments."""
    assert read(tmp_path, BASE + "eval:\n  # every_epochs: 1\nprecision:\n") == read(tmp_path)
    assert read(tmp_path, BASE + "eval:\n", eval__every_epochs="1").eval.every_epochs == 1


FLAGS = {
    "batch.steps": "[[0, 64]]",
    "batch.per_gpu": "8",
    "batch.total": "64",
    "schedule.samples": "128",
    "scaling.warmup_fraction": "0.1",
}


@pytest.mark.parametrize("flag", [name for group in EXCLUSIVE for name in group])
def test_a_flag_over_a_resolved_run_file_does_what_it_does_over_the_file_it_came_from(tmp_path: Path, flag: str) -> None:
    """There every setting is written out, the unset ones as null or []."""
    other = next(name for group in EXCLUSIVE if flag in group for name in group if name != flag)
    base = BASE.replace("per_gpu: 32, ", "").replace("epochs: 10", "shape: cosine")
    given = {"batch.total": "256", "schedule.epochs": "10"} | {other: FLAGS.get(other, "2")}
    given = {name: value for name, value in given.items() if not any(flag in g and name in g and name != other for g in EXCLUSIVE)}
    config = load_text(tmp_path, base.replace("64, per_gpu: 32", "64"), given)
    (tmp_path / "resolved.yaml").write_text(to_yaml(encode(config)))
    over = {flag: FLAGS.get(flag, "4")}
    assert load(tmp_path / "resolved.yaml", over) == load_text(tmp_path, to_yaml(lean(config)), over)


def lean(config: Config) -> dict[str, Any]:
    """The config as a person writes it: what is unset is left out."""
    tree = encode(config)
    parts = {name: part if isinstance(part, dict) else {"": part} for name, part in tree.items()}
    return {n: {k: v for k, v in p.items() if v not in (None, [])} if "" not in p else p[""] for n, p in parts.items()}


def load_text(folder: Path, text: str, flags: dict[str, str]) -> Config:
    """A run file of this text under these flags."""
    (folder / "lean.yaml").write_text(text)
    return load(folder / "lean.yaml", flags)


def test_a_null_flag_sets_nothing_and_replaces_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, schedule__samples="null") == read(tmp_path)


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


@given(tree=TREES)
def test_a_config_written_out_reads_back_as_itself(tree: dict[str, Any]) -> None:
    config = decode(tree)
    assert decode(encode(config)) == config
    assert encode(decode(encode(config))) == encode(config)


@given(tree=TREES)
@example(tree={"batch": {"reference": 1}, "optim": {"lr": 1.0}, "schedule": {}, "recipe": {"a_": "0E0", "b_": "off", "c_": 1e-300}})
@example(tree={"batch": {"reference": 1}, "optim": {"lr": 1.0}, "schedule": {}, "recipe": {"a_": "089", "b_": "0o7", "c_": "5."}})
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


DIGITS = "9" * 5000


@pytest.mark.parametrize("number", [DIGITS, f"-{DIGITS}", f"0x{DIGITS}"])
def test_a_number_without_end_is_said_to_be_one(number: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"recipe: {{use: digits}}\nbatch:\n  total: {number}\n")
    with pytest.raises(UserError) as caught:
        load(path)
    assert re.search(
        r"line 3: not YAML: a whole number of 5,00\d digits, more than any setting has; fix that line", str(caught.value)
    )
    path.write_text("recipe: {use: digits}\nbatch: {reference: 32}\n")
    with pytest.raises(UserError) as caught:
        load(path, {"batch.total": number})
    told = str(caught.value)
    assert told.startswith("--batch.total: is '")
    assert "digits, more than any setting has" in told
    assert len(told) < 300


@pytest.mark.parametrize(("text", "read"), [("a\nb", "a b"), ("a\n\nb", "a\\nb"), ("a #b", "a"), ("runs/x\n y", "runs/x y")])
def test_a_flag_of_which_yaml_would_leave_out_something_is_refused(text: str, read: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("recipe: {use: digits}\n")
    with pytest.raises(UserError) as caught:
        load(path, {"run.dir": text})
    assert str(caught.value).startswith(f"--run.dir: is {text!r}, which YAML reads as '{read}'; quote it")
    with pytest.raises(UserError, match=r"run\.dir: is '.*'; give a path of"):
        load(
            path,
            {
                "run.dir": json.dumps("a\nb"),
                "batch.reference": "32",
                "batch.total": "32",
                "optim.lr": "0.1",
                "schedule.samples": "32",
            },
        )


@pytest.mark.parametrize("setting", ["restart.start_s", "restart.hang_s"])
def test_a_time_that_no_timer_takes_is_refused(setting: str, tmp_path: Path) -> None:
    """It was an OverflowError once the ranks came together."""
    with pytest.raises(UserError, match=setting):
        read(tmp_path, **{setting: "1e29"})
