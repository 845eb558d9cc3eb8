"""Names that reach a shell, a path or another tool's file: the whole of them is allowed, or they are refused."""

import re
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.allowed_names import FOLDER, PROJECT, checked, new_folder
from harness.config.errors import UserError
from harness.config.loader import decode
from launch.cluster.allowed_names import HOST, PATH, TIME, WORD, WORDS

EVERY = {"word": WORD, "words": WORDS, "time": TIME, "path": PATH, "host": HOST}
near = st.from_regex(
    r"[A-Za-z0-9/][A-Za-z0-9._:/,-]{0,6}[\n\r\t ;$`'\"#&|<>\\(){}*?!%~\x00\u2028\u0661-]?[a-z0-9]{0,3}", fullmatch=True
)


@given(value=st.one_of(st.text(max_size=12), near), kind=st.sampled_from(sorted(EVERY)))
def test_what_is_allowed_means_nothing_to_any_shell(value: str, kind: str) -> None:
    try:
        assert checked("--name", value, EVERY[kind], "another") == value
    except UserError as error:
        shown = str(error)
    else:
        assert re.fullmatch(r"[A-Za-z0-9._:/@+=,\[\]-]+", value)
        assert not value.startswith("-")
        return
    assert "\n" not in shown
    assert "\r" not in shown


@pytest.mark.parametrize(
    ("kind", "fine", "not_fine"),
    [
        ("word", ["a", "gpu-1", "n1.cluster"], ["", "a b", "a\n", "-a", "é", "a" * 64]),
        ("words", ["a", "a,b"], ["a,", ",a", "a;b"]),
        ("time", ["30", "12:00:00", "1-12", "1-12:30:00"], ["", "1:2:3:4", "1d", "1:99", "-1"]),
        ("host", ["n1", "10.0.0.1", "[::1]", "a.b-c"], ["", "-n1", "n1-", "a b", "::1", "n1\n"]),
        ("path", ["/", "/a/b_c-1.2"], ["a", "/a b", "/a%j", "/a\n", "/$HOME", "/é"]),
    ],
)
def test_the_whole_of_a_name_counts(kind: str, fine: list[str], not_fine: list[str]) -> None:
    for value in fine:
        assert checked("--name", value, EVERY[kind], "another") == value
    for value in not_fine:
        with pytest.raises(UserError, match="--name"):
            checked("--name", value, EVERY[kind], "another")


SETTINGS = {"run.dir": FOLDER, "watch.project": PROJECT}
FORBIDDEN = '\x00\n\r\t\x1b\u2028`$"\\;|<>*?!{}'
any_text, signs = st.text(max_size=4), st.sampled_from(["", *FORBIDDEN, " ", "/", "..", "-"])
nearly = st.tuples(any_text, signs, any_text).map("".join)


def decoded(setting: str, value: str) -> str:
    """What a run file with this setting gives."""
    section, name = setting.split(".")
    tree: dict[str, Any] = {"batch": {"reference": 8}, "optim": {"lr": 0.1}, "schedule": {"epochs": 1}, section: {name: value}}
    found: str = getattr(getattr(decode(tree), section), name)
    return found


def refused(call: Callable[[], str]) -> UserError | str:
    """What a call gives, or how it refuses."""
    try:
        return call()
    except UserError as error:
        return error


@given(value=nearly, setting=st.sampled_from(sorted(SETTINGS)))
def test_a_run_file_names_folder_and_project_in_harmless_signs(value: str, setting: str) -> None:
    found = refused(lambda: decoded(setting, value))
    assert str(found).isprintable()
    if isinstance(found, UserError):
        assert found.setting == setting
        assert re.fullmatch(SETTINGS[setting], value) is None
        return
    assert found == value == value.strip()
    assert not value.startswith("-")
    assert not set(value) & set(FORBIDDEN)
    assert shlex.split(shlex.quote(value)) == [value]


@given(value=nearly)
def test_a_run_file_whose_own_name_makes_no_folder_is_refused(value: str) -> None:
    made = refused(lambda: new_folder(value, datetime(2026, 1, 2, 3, 4, 5)))
    assert str(made).isprintable()
    if not isinstance(made, UserError):
        assert made == f"runs/{value}-20260102-030405"
        assert Path(made).parent == Path("runs")
        assert not set(made) & set(FORBIDDEN)


@pytest.mark.parametrize(
    ("setting", "fine", "not_fine"),
    [
        (
            "run.dir",
            ["runs/a", "/a b/c (1)/d", "~/x", "../x", "C:x", "/gr\u00f6\u00dfe/a+b=1,c", "it's"],
            ["", " a", "a ", "a\nb", "-a", "a;b", "$HOME"],
        ),
        ("watch.project", ["a", "Big batch 2.0", "x_1-y"], ["", "-a", "a/b", "a:b", "a\n", "a ", "\u00e9", "a" * 129]),
    ],
)
def test_the_whole_of_a_setting_counts(setting: str, fine: list[str], not_fine: list[str]) -> None:
    for value in fine:
        assert decoded(setting, value) == value
    for value in not_fine:
        with pytest.raises(UserError, match=setting):
            decoded(setting, value)
