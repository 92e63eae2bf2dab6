"""Reading of YAML: bounded, and no surprises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.errors import InvalidSpec
from controlplane.spec import from_yaml
from controlplane.spec.document import MAX_DEPTH, MAX_SPEC_BYTES, Unreadable, plain_scalar, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("8000:10", "8000:10"),
        ("2026-11-20", "2026-11-20"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("21000-21999", "21000-21999"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        (".inf", ".inf"),
        ("12\n", "12\n"),
    ],
)
def test_plain_scalars_are_yaml_1_2(text: str, value: Any) -> None:
    assert plain_scalar(text) == value
    assert type(plain_scalar(text)) is type(value)


def test_lines_of_keys_and_entries() -> None:
    document = read_yaml("a:\n  - b: 1\n\n    c: [x,\n      y]\n", {})
    assert document.data == {"a": [{"b": 1, "c": ["x", "y"]}]}
    assert document.line(("a",)) == 1
    assert document.line(("a", 0, "b")) == 2
    assert document.line(("a", 0, "c", 1)) == 5
    assert document.line(("a", 0, "missing", "deeper")) == 2


def test_nesting_is_bounded() -> None:
    for text in ("[" * 100_000, "- " * 5_000, "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)):
        with pytest.raises(Unreadable):
            read_yaml(text, {})


def test_a_bomb_of_aliases_is_refused_at_the_first_one() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    with pytest.raises(InvalidSpec, match=r"^spec:2: b\[0\]: YAML aliases are not allowed"):
        from_yaml(bomb)


def test_size_is_bounded() -> None:
    with pytest.raises(InvalidSpec, match="is larger than"):
        from_yaml("#" * (MAX_SPEC_BYTES + 1))


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "text", "12"])
def test_what_is_no_mapping_is_told(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^spec:1: must be a mapping of keys"):
        from_yaml(text)


def test_a_character_that_yaml_does_not_allow() -> None:
    with pytest.raises(InvalidSpec, match=r"^spec:2: is not YAML"):
        from_yaml("cluster: x\na: \x07\n")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`?, \n\t0$\\\x00\u2028", max_size=60))
def test_any_text_is_a_spec_or_an_invalid_spec(text: str) -> None:
    with pytest.raises(InvalidSpec):
        from_yaml(text)
