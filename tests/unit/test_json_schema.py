"""The run file's JSON schema: what editors check is what the loader checks."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.config.errors import UserError
from harness.config.json_schema import json_schema
from harness.config.loader import decode, read_yaml
from harness.config.schema import Config
from tests.support.processes import ROOT

RUN_FILES = sorted((ROOT / "configs").glob("*.yaml"))
GOOD: dict[str, Any] = {"batch": {"reference": 32, "per_gpu": 32}, "optim": {"lr": 0.1}, "schedule": {"epochs": 1}}


def fits(tree: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(json_schema()).is_valid(tree))


def loads(tree: dict[str, Any]) -> bool:
    try:
        return isinstance(decode(tree), Config)
    except UserError:
        return False


def test_the_committed_schema_is_that_of_the_code() -> None:
    made = json.loads((ROOT / "configs" / "run.schema.json").read_text())
    assert made == json.loads(json.dumps(json_schema())), "run `widebatch schema > configs/run.schema.json`"
    jsonschema.Draft202012Validator.check_schema(made)


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda f: f.stem)
def test_every_run_file_fits_and_names_its_schema(file: Path) -> None:
    assert fits(read_yaml(file))
    assert file.read_text().splitlines()[0] == "# yaml-language-server: $schema=run.schema.json"


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("batch", "reference", 0),
        ("batch", "refrence", 32),
        ("optim", "lr", -1.0),
        ("optim", "betas", [0.9]),
        ("schedule", "shape", "cosin"),
        ("compute", "compile", "often"),
        ("recipe", "width", {"a": 1}),
        ("guard", "nonsense", 1),
    ],
)
def test_editor_and_loader_refuse_the_same(section: str, setting: str, value: object) -> None:
    assert fits(GOOD)
    assert loads(GOOD)
    bad = GOOD | {section: {**GOOD.get(section, {}), setting: value}}
    assert not fits(bad)
    assert not loads(bad)


@pytest.mark.parametrize(("text", "good"), [("0.5M", True), ("10B", True), ("10G", False), ("M", False)])
def test_editor_and_loader_take_the_same_amounts(text: str, good: bool) -> None:
    written = GOOD | {"schedule": {"tokens": text, "shape": "step", "milestones": [text]}}
    assert fits(written) == loads(written) == good


@pytest.mark.parametrize(
    ("reference", "good"), [({"batch": 8, "tokens": "1B"}, True), ({"tokens": 9}, False), ({"batch": 8, "token": 9}, False)]
)
def test_editor_and_loader_take_the_same_mapping_as_reference(reference: object, good: bool) -> None:
    written = GOOD | {"batch": {**GOOD["batch"], "reference": reference}}
    assert fits(written) == loads(written) == good


def test_knobs_of_a_recipe_are_free_and_each_setting_has_its_meaning() -> None:
    assert fits(GOOD | {"recipe": {"use": "my.py:Mine", "width": 8, "names": ["a", "b"], "flag": True}})
    schema = json_schema()
    bare = [
        f"{kind['title']}.{name}"
        for kind in schema["$defs"].values()
        for name, part in kind.get("properties", {}).items()
        if "description" not in part and "$ref" not in part
    ]
    assert bare == []
