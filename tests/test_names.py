"""Names that reach a shell, a path or another tool's file: the whole of them is allowed, or they are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan.errors import UserError
from launch.names import HOST, PATH, TIME, WORD, WORDS, checked

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
