from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import lupa.lua54
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.body import MAX_BODY_BYTES, block_hashes
from controlplane.routing.features import (
    KINDS,
    MalformedFeatures,
    Request,
    from_body,
    from_parts,
    from_whole,
    parse,
    record,
)
from dataplane.errors import EDGE_ERRORS
from tests.controlplane.routing import worlds

FEATURES_LUA = Path(__file__).parents[3] / "haproxy" / "lua" / "features.lua"
checked = settings(max_examples=200, derandomize=True, deadline=None)
short = st.binary(max_size=255)
requests = st.builds(
    Request,
    plain=st.just(True),
    kind=st.integers(1, 14),
    flags=st.integers(0, 3),
    model=st.binary(min_size=1, max_size=255),
    session=short,
    pin=st.just(b""),
    hashes=st.lists(st.binary(min_size=8, max_size=8), max_size=33).map(b"".join),
    body_bytes=st.integers(0, 2**32 - 1),
    prompt_bytes=st.integers(0, 2**32 - 1),
    max_tokens=st.integers(0, 2**32 - 1),
    tenant=short,
    error=st.just(""),
    missing=st.just(""),
)
BLANK = worlds.request("", plain=False, session="", flags=1, missing="more")


@checked
@given(requests)
def test_round_trip(request: Request) -> None:
    assert parse(record(request), request.tenant) == request


@checked
@given(
    st.one_of(st.binary(max_size=400), st.tuples(requests.map(record), st.integers(0, 300)).map(lambda t: t[0][: t[1]]))
)
def test_garbage_is_malformed_and_nothing_else(data: bytes) -> None:
    try:
        parsed = parse(data)
    except MalformedFeatures:
        return
    assert 1 <= parsed.kind <= 14
    assert len(parsed.hashes) % 8 == 0


@checked
@given(requests.map(record), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_malformed_or_still_a_request(data: bytes, at: int, value: int) -> None:
    changed = bytearray(data)
    changed[at % len(data)] = value
    try:
        parse(bytes(changed))
    except MalformedFeatures:
        pass


@checked
@given(st.integers(0, 140_000), st.integers(0, 140_000), st.booleans())
def test_each_block_is_hashed_by_itself(size: int, start: int, view: bool) -> None:
    data = random.Random(size).randbytes(size)
    expected = b"".join(
        xxhash.xxh3_64_intdigest(data[at : min(at + 4096, 131_072)]).to_bytes(8, "little")
        for at in range(start, min(size, 131_072), 4096)
    )
    assert block_hashes(memoryview(data) if view else data, start) == expected


def test_a_prompt_that_grows_keeps_its_full_blocks() -> None:
    data = random.Random(1).randbytes(131_072)
    whole = block_hashes(data)
    for size in (4096, 4097, 12_288, 100_000, 131_071):
        full = size // 4096 * 8
        assert block_hashes(data[:size])[:full] == whole[:full]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@checked
@given(
    st.one_of(
        st.binary(max_size=200),
        json_values.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(
            st.sampled_from(["model", "user", "messages", "previous_response_id", "max_tokens"]), json_values
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.booleans(),
    st.sampled_from([1, 3]),
)
def test_no_body_raises(body: bytes, complete: bool, flags: int) -> None:
    told = from_body(BLANK._replace(flags=flags), body, complete)
    assert told.error in EDGE_ERRORS or not told.error
    assert told.missing in EDGE_ERRORS or not told.missing
    assert told.plain == bool(told.model and not told.error and not told.pin)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "empty_body"),
        (b" \r\n\t", "empty_body"),
        (b"{", "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b"{'model': 'm'}", "invalid_json"),
        (b'{"model": "m"} trailing', "invalid_json"),
        (b'\xff\xfe{"model"', "invalid_json"),
        (b"[]", "invalid_body"),
        (b'"model"', "invalid_body"),
        (b'{"model": 1}', "invalid_model"),
        (b'{"model": ["m"]}', "invalid_model"),
        (b'{"model": "\xff"}', "invalid_model"),
        (b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "invalid_json"),
        (b"[" * 900_000, "invalid_json"),
    ],
)
def test_bad_bodies_have_a_code(body: bytes, error: str) -> None:
    told = from_body(BLANK, body, True)
    # Deep nesting may be refused as JSON or as a value that is no string: both are the client's error.
    assert told.error == error or (len(body) > 100_000 and told.error in {"invalid_model", "invalid_body"})


def test_what_a_whole_body_tells() -> None:
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": 'say "model": "x"', "model": "inner"}],
            "user": "alice",
            "prompt_cache_key": "k",
            "max_completion_tokens": 77,
            "model": "m",
        }
    ).encode()
    told = from_body(BLANK, body, True)
    assert (told.model, told.session, told.max_tokens, told.error) == (b"m", b"user=alice", 77, "")
    assert told.plain
    start = body.index(b'"messages"')
    assert told.hashes == block_hashes(body[start:])
    assert told.prompt_bytes == len(body) - start
    assert from_body(BLANK, body, True, ["prompt_cache_key", "user"]).session == b"prompt_cache_key=k"


def test_the_last_of_equal_keys_counts_as_in_the_engine() -> None:
    assert from_body(BLANK, b'{"model": "a", "model": "b"}', True).model == b"b"


def test_headers_count_more_than_the_body() -> None:
    asked = BLANK._replace(session=b"x-session-id=s", hashes=b"12345678")
    told = from_body(asked, b'{"model": "m", "user": "u", "prompt": "p"}', True)
    assert told.session == b"x-session-id=s"
    assert told.hashes == b"12345678"


def test_a_model_that_a_header_named_is_kept_when_the_body_has_none() -> None:
    asked = parse(record(worlds.request(flags=9)))
    assert (asked.error, asked.model) == ("more", b"m")
    told = from_body(asked, b' {"messages": []}', True)
    assert (told.model, told.plain) == (b"m", True)


@pytest.mark.parametrize(
    ("body", "model", "error"),
    [
        (b'{"a": {"model": "in"}, "model": "m", "x": "', b"m", ""),
        (b'{"a": "model", "model" : "m"', b"m", ""),
        (b'{"mod\\u0065l": "m", "x": [', b"m", ""),
        (b'{"model": "m\\u0041", "x": [', b"mA", ""),
        (b'{"model": 5, "x": [', b"", "invalid_model"),
        (b'{"model": null, "x": [', b"", ""),
        (b'{"model": "m', b"", ""),
        (b'{"messages": ["' + b"x" * 999_000, b"", ""),
        (b'{"messages": "\\"}, \\"model\\": \\"no\\""', b"", ""),
        (b'{"a": 1} {"model": "m"', b"", "invalid_json"),
        (b'["model", "m"', b"", "invalid_body"),
        (b"{" * 900_000, b"", ""),
        (b'{"a": ' + b"[]," * 300_000, b"", ""),
    ],
)
def test_a_cut_body_is_searched(body: bytes, model: bytes, error: str) -> None:
    told = from_body(BLANK, body, False)
    assert (told.model, told.error) == (model, error)
    assert told.missing == "model_not_visible"


def test_a_body_longer_than_the_limit_counts_as_cut() -> None:
    told = from_body(BLANK, b'{"model": "m", "p": "' + b"x" * MAX_BODY_BYTES + b'"}', True)
    assert told.model == b"m"


FORM = (
    b'--bo\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    b'RIFF\x00\r\n--b\r\n\r\n--bo\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n--bo--\r\n'
)


def test_a_form() -> None:
    form = BLANK._replace(flags=3, kind=KINDS.index("transcription"))
    assert from_body(form, FORM, True).model == b"whisper"
    assert from_body(form, FORM.replace(b'name="model"', b'name="x"'), True).missing == "model_required"
    cut = from_body(form._replace(flags=2), FORM[:80], False)
    assert (cut.model, cut.error, cut.missing) == (b"", "", "model_not_visible")
    assert from_body(form, b"no form", True).error == "invalid_body"
    assert from_body(form, b"--bo\r\nmodel", True).error == "invalid_body"


def test_parts_of_a_grpc_caller() -> None:
    made = from_parts(kind="chat", model="m", session="user=a", tenant="t", prefix_hashes=[1, 2])
    assert made.plain
    assert (made.kind, made.model, made.session, made.tenant) == (1, b"m", b"user=a", b"t")
    assert made.hashes == (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    read = from_parts(kind="completions", body=b'{"prompt": "x", "model": "m"}')
    assert (read.model, len(read.hashes), read.plain) == (b"m", 8, True)
    cut = from_parts(kind="chat", body=b'{"messages": [', body_bytes=10**6)
    assert cut.missing == "model_not_visible"
    assert from_parts(kind="chat").missing == "model_required"
    for wrong in ({"kind": "nothing"}, {"kind": "chat", "model": "m" * 256}, {"kind": "chat", "prefix_hashes": [-1]}):
        with pytest.raises(MalformedFeatures):
            from_parts(**wrong)


def lua_record() -> Callable[[bytes], Request]:
    """Return what reads a body with HAProxy's Lua."""
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

    def read(body: bytes) -> Request:
        written = made[b"record"](body, 1, True, len(body), env)
        return parse(written[0] if isinstance(written, tuple) else written)

    return read


MEMBERS = st.permutations(["model", "prompt", "stream", "metadata"])


@settings(max_examples=100, derandomize=True, deadline=None)
@given(MEMBERS, st.integers(0, 150_000), st.integers(0, 9_000))
def test_equal_bodies_have_equal_features_by_every_way(order: list[str], size: int, before: int) -> None:
    words = random.Random(size)
    values: dict[str, object] = {
        "model": "m",
        "prompt": "".join(words.choices("abc defgh\n", k=size)),
        "stream": True,
        "metadata": {"pad": "p" * before},
    }
    body = json.dumps({name: values[name] for name in order}).encode()
    exact = from_body(BLANK, body, True)
    raw = from_whole(1, len(body), memoryview(body))
    called = from_parts(kind="chat", body=body)
    lua = LUA_RECORD(body)
    told = [(one.hashes, one.prompt_bytes, one.body_bytes or len(body)) for one in (exact, raw, called, lua)]
    assert told == [(block_hashes(body, start := body.index(b'"prompt"')), len(body) - start, len(body))] * 4
    assert {one.model for one in (exact, raw, called)} == {b"m"}
    assert lua.model == b"m" or lua.error == "more", "a model that Lua cannot see is asked for"


LUA_RECORD = lua_record()
