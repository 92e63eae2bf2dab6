"""A body that came raw tells what the exact reader, and the feature record of HAProxy's Lua, would tell."""

from __future__ import annotations

import json
from pathlib import Path

import lupa.lua54
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.features import MalformedFeatures, Request, from_body, from_whole, parse
from controlplane.routing.whole import DECODED_BYTES, END_BYTES
from tests.controlplane.routing import worlds

FEATURES_LUA = Path(__file__).parents[3] / "haproxy" / "lua" / "features.lua"
BLANK = worlds.request("", plain=False, session="", flags=1, missing="more")
checked = settings(max_examples=200, derandomize=True, deadline=None)
CHAT, RESPONSES, TRANSCRIPTION = 1, 3, 10


def whole(body: bytes, **changes: object) -> Request:
    return from_whole(**{"kind": CHAT, "size": len(body), "body": body, **changes})  # type: ignore[arg-type]


def exact(body: bytes) -> Request:
    return from_body(BLANK, body, True)


TEXT = st.text(max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | TEXT | st.just('", "model": "no"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", "user"]), inner),
    max_leaves=8,
)
OBJECTS = st.lists(
    st.tuples(st.sampled_from(["model", "messages", "tools", "max_tokens", "user", "n", "m\\u006fdel"]), VALUES),
    max_size=5,
    unique_by=lambda member: member[0].replace("\\u006f", "o"),
)


def written(members: list[tuple[str, object]], filler: int, at: int) -> bytes:
    """Return a JSON object with a long member among the others; keys are written as they are."""
    parts = [f'"{name}": {json.dumps(value)}' for name, value in members]
    if filler:
        parts.insert(min(at, len(parts)), f'"filler": "{"x" * filler}"')
    return ("{" + ", ".join(parts) + "}").encode()


@checked
@given(OBJECTS, st.sampled_from((0, DECODED_BYTES, 3 * DECODED_BYTES)), st.integers(0, 5))
def test_it_agrees_with_the_exact_reader(members: list[tuple[str, object]], filler: int, at: int) -> None:
    body = written(members, filler, at)
    told, read = whole(body), exact(body)
    assert (told.model, told.error, told.plain, told.hashes) == (read.model, read.error, read.plain, read.hashes)
    assert told.prompt_bytes == read.prompt_bytes


@checked
@given(st.binary(max_size=60), st.sampled_from([b"", b'{"model":"m","x":"', b'{"model": 1}']), st.integers(0, 20_000))
def test_any_bytes_have_the_exact_readers_error(data: bytes, start: bytes, size: int) -> None:
    body = start + data
    told, read = whole(body), exact(body)
    assert (told.model, told.error) == (read.model, read.error)
    assert whole(body, size=len(body) + size + 1).missing in {"model_not_visible", ""}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "empty_body"),
        (b" \n", "empty_body"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_body"),
        (b'{"model": 5}', "invalid_model"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"model": "m"} x', "invalid_json"),
    ],
)
def test_errors(body: bytes, error: str) -> None:
    told = whole(body)
    assert told.error in {error, exact(body).error}
    assert not told.plain


def test_a_body_without_a_model_needs_one_unless_a_header_names_it() -> None:
    assert (whole(b"{}").missing, whole(b"{}").plain) == ("model_required", False)
    assert (whole(b"{}", model=b"h").model, whole(b"{}", model=b"h").plain) == (b"h", True)
    assert whole(b'{"model": "b"}', model=b"h").model == b"b"


FILLER = b'"x": "' + b"y" * DECODED_BYTES + b'"'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", ' + FILLER + b"}",
        b'{"n": 1, "o": {"a": [1]}, "model" : "m", ' + FILLER + b"}",
        b"{" + FILLER + b', "model":"m"}\r\n',
        b"{" + FILLER + b', "model": "m", "tools": [{"a": "\\""}], "o": {}}',
        b"{" + FILLER + b', "tools": [{"model": "no"}], "model": "m"}',
        b"{" + FILLER + b', "model": "m", "tools": [{"model": "no"}]}',
        b'{"model": "m", ' + FILLER + b', "tools": [{"model": "no"}]}',
        b'{"tools": {"model": "no"}, ' + FILLER + b', "model": "m"}',
        b'{"model": "no", ' + FILLER + b', "model": "m"}',
        b'{"model": "no", ' + FILLER + b', "mod\\u0065l": "m"}',
        b"{" + FILLER + b', "a": "\\"model\\": \\"no\\"", "model": "m"}',
        b"{" + FILLER + b', "model": "m", "a": "\\"model"}',
        b"{" + FILLER + b', "a,\\"model": "no", "model": "m"}',
        b"{" + FILLER + b', "a": "model", "b": ["model"], "model": "m"}',
        b"{" + FILLER + b', "model": "m", ' + FILLER + b"}",
        b"{" + FILLER + b', "mod\\u0065l": "m"}',
        b"{" + FILLER + b', "model": "\\u006d"}',
        b"[1, {" + FILLER + b', "model": "m"}]',
    ],
)
def test_the_ends_never_guess(body: bytes) -> None:
    assert len(body) > END_BYTES
    assert whole(body).model == exact(body).model
    assert whole(memoryview(body)) == whole(body)  # type: ignore[arg-type]


def test_what_else_it_tells() -> None:
    body = b'{"model": "m", "user": "u", "prompt_cache_key": "k", "max_tokens": 7, "prompt": "p"}'
    told = whole(body, tenant=b"t", headers=((b"x-session-id", b"s"),), session_keys={b"m": ()})
    assert (told.max_tokens, told.tenant, told.session) == (7, b"t", b"x-session-id=s")
    assert whole(body).session == b"", "nobody routes by it"
    for keys, session in (
        ((b"user", b"x-session-id"), b"user=u"),
        ((b"prompt_cache_key",), b"prompt_cache_key=k"),
        ((b"x-session-id", b"user"), b"x-session-id=s"),
        ((b"x-other", b"user"), b"user=u"),
        ((b"x-other",), b""),
    ):
        assert whole(body, headers=((b"x-session-id", b"s"),), session_keys={b"m": keys}).session == session
    long = b"{" + FILLER + b', "user": "u", ' + FILLER + b', "model": "m"}'
    assert whole(long, session_keys={b"m": ()}).session == b"user=u"
    assert whole(long, session_keys={b"m": ()}, headers=((b"h", b"s"),)).session == b"h=s"
    assert whole(long, session_keys={b"m": (b"user",)}, headers=((b"h", b"s"),)).session == b"user=u"
    kept = whole(b'{"model": "m", "user": "' + b"u" * 300 + b'"}', session_keys={b"m": ()}).session
    assert kept == b"user=#" + xxhash.xxh64_hexdigest(b"u" * 300).encode()
    odd = whole(b'{"model": "m", "user": 5, "max_tokens": 1.5}', headers=((b"h", b"s"),), session_keys={b"m": ()})
    assert (odd.model, odd.session, odd.plain) == (b"m", b"h=s", True)


def test_a_response_is_pinned_however_long_the_body() -> None:
    pin = b'"previous_response_id": "resp_0123abcd_' + b"f" * 32 + b'"'
    for filler in (b'"a": 1', FILLER):
        told = whole(b'{"model": "m", ' + filler + b", " + pin + b", " + filler + b"}", kind=RESPONSES)
        assert (told.pin, told.plain) == (b"0123abcd", False)


def test_forms() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
    assert whole(form, kind=TRANSCRIPTION).model == b"whisper"
    assert whole(form, kind=TRANSCRIPTION, content_type=b"Multipart/Form-Data; boundary=b").model == b"whisper"
    assert whole(b'{"model": "m"}', kind=TRANSCRIPTION, content_type=b"application/json").model == b"m"


@pytest.mark.parametrize("changes", [{"kind": 0}, {"kind": -1}, {"kind": 15}, {"model": b"m" * 256}])
def test_what_the_contract_does_not_allow(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedFeatures):
        whole(b'{"model": "m"}', **changes)


def test_the_chain_is_the_one_that_haproxy_makes() -> None:
    runtime = lupa.lua54.LuaRuntime(encoding=None)
    made = runtime.execute(FEATURES_LUA.read_bytes() + b"\nreturn features")
    env = runtime.table_from(
        {
            b"header": lambda *_: None,
            b"session_keys": lambda *_: None,
            # Lua's integers are signed.
            b"block_hash": lambda _, data: int.from_bytes(xxhash.xxh3_64_digest(data), "big", signed=True),
        }
    )
    for size in (1, 3000, 4050, 4096, 8192, 20_000, 100_000, 131_000):
        for name in ("messages", "prompt", "input", "other"):
            body = json.dumps({"n": 1, name: "0123456789 input" * (size // 16), "model": "m"}).encode()
            written_there = made[b"record"](body, 1, True, len(body), env)
            seen = parse(written_there[0] if isinstance(written_there, tuple) else written_there)
            for raw in (body, memoryview(body)):
                told = whole(raw)  # type: ignore[arg-type]
                assert (told.model, told.hashes, told.prompt_bytes) == (seen.model, seen.hashes, seen.prompt_bytes)
