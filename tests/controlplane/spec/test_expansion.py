"""Variables in a spec's text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.errors import InvalidSpec
from controlplane.spec import from_yaml
from controlplane.spec.expansion import MAX_NESTED, escaped, expanded

ENVIRONMENT = {"HOME": "/home/x", "EMPTY": "", "SELF": "${HOME}", "LINES": "a\nb", "BRACE": "}"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${HOME}/y", "/home/x/y"),
        ("${HOME}${HOME}", "/home/x/home/x"),
        ("${NONE:-/d}/y", "/d/y"),
        ("${NONE:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${HOME:-${NOT_SET}}", "/home/x"),
        ("${NONE:-${HOME}/z}/y", "/home/x/z/y"),
        ("${NONE:-${NONE:-${HOME}}}", "/home/x"),
        ("${SELF}", "${HOME}"),
        ("${BRACE}x", "}x"),
        ("$${HOME}", "${HOME}"),
        ("$HOME $5 $$", "$HOME $5 $$"),
        ("a}b", "a}b"),
    ],
)
def test_values(text: str, value: str) -> None:
    assert expanded(text, ENVIRONMENT) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NONE}", "NONE is not set"),
        ("${NONE:-${NONE}}", "NONE is not set"),
        ("${HOME", "not closed"),
        ("${HOME:-x", "not closed"),
        ("${HOME-x}", "not closed"),
        ("${HOME:x}", "not closed"),
        ("${}", "has no name"),
        ("${1}", "has no name"),
        ("${ HOME}", "has no name"),
        ("${LINES}", "not printable ASCII"),
        ("${A:-" * (MAX_NESTED + 1) + "}" * (MAX_NESTED + 1), "nested deeper"),
        ("${HOME}" * 2_000, "longer than"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expanded(text, ENVIRONMENT)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(alphabet="${}:-AB", max_size=40))
def test_escaped_text_comes_back(text: str) -> None:
    assert expanded(escaped(text), {}) == text


def test_a_variable_never_becomes_yaml_or_a_number() -> None:
    spec = "cluster: ${NAME}\nmodels: [{name: m, pools: [{replicas: 1, engine: {kind: simulated}}]}]\n"
    assert from_yaml(spec, environment={"NAME": "x"}).cluster == "x"
    with pytest.raises(InvalidSpec, match=r"^spec:1: cluster: name 'x, nodes: \[\]' is not allowed"):
        from_yaml(spec, environment={"NAME": "x, nodes: []"})
    with pytest.raises(InvalidSpec, match="must be a whole number"):
        from_yaml(spec.replace("replicas: 1", 'replicas: "${N}"'), environment={"NAME": "x", "N": "1"})
