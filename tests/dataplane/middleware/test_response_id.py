"""The id that is written into a body while it passes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.middleware.body_members import MemberWriter, grown_headers
from dataplane.middleware.response_id import response_id

ID = "resp_0123abcd_" + "0" * 32

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["request_id", "model", "}", '"'])
pieces = st.lists(st.integers(1, 7), max_size=30)


def written(body: bytes, sizes: list[int]) -> bytes:
    """Feed a body in pieces of the given sizes, and what is left at once."""
    writer = MemberWriter({"request_id": ID})
    out = b""
    for size in sizes:
        part, body = body[:size], body[size:]
        out += writer.feed(part, more=True)
    return out + writer.feed(body, more=False)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.dictionaries(keys, json_values, max_size=3), pieces, st.sampled_from([None, 1]), st.sampled_from(["", " \r\n"])
)
def test_objects_get_the_id(value: dict[str, Any], sizes: list[int], indent: int | None, after: str) -> None:
    body = (json.dumps(value, indent=indent, ensure_ascii=False) + after).encode("utf-8", "surrogatepass")
    if b"\xed" in body:  # lone surrogates are not UTF-8
        body = (json.dumps(value, indent=indent) + after).encode()
    out = written(body, sizes)
    assert json.loads(out) == {**value, "request_id": ID}
    assert len(out) == len(body) + MemberWriter({"request_id": ID}).growth


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(alphabet='{}[]",: \\a1', max_size=14), pieces)
def test_what_is_not_json_does_not_become_json(text: str, sizes: list[int]) -> None:
    body = text.encode()
    out = written(body, sizes)
    assert len(out) == len(body) + MemberWriter({"request_id": ID}).growth
    try:
        before = json.loads(body)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            json.loads(out)
        return
    after = json.loads(out)
    assert after == ({**before, "request_id": ID} if isinstance(before, dict) else before)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("sizes", [[], [1], [1, 1, 1], [2, 1]])
def test_other_encodings_are_blanked(encoding: str, sizes: list[int]) -> None:
    body = '{"request_id":"resp_x"}'.encode(encoding)
    assert written(body, sizes) == b" " * (len(body) + MemberWriter({"request_id": ID}).growth)


def test_an_escaped_name_is_overruled_too() -> None:
    assert json.loads(written(b'{"request\\u005fid":"resp_x"}', []))["request_id"] == ID


def test_much_white_space_is_not_copied_again_and_again() -> None:
    writer = MemberWriter({"request_id": ID})
    out = writer.feed(b'{"a":1}', more=True)
    for _ in range(1000):
        assert writer.feed(b" " * 1000, more=True) == b""
    assert json.loads(out + writer.feed(b"", more=False)) == {"a": 1, "request_id": ID}


def test_ids_and_headers() -> None:
    assert response_id("0123abcd") != response_id("0123abcd")
    assert len(response_id("0123abcd")) == len(ID)
    headers = [(b"host", b"x"), (b"content-length", b"10"), (b"content-length", b"x")]
    assert grown_headers(headers, 5) == [(b"host", b"x"), (b"content-length", b"15"), (b"content-length", b"x")]
