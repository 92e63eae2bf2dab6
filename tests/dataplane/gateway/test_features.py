"""The Lua that reads bodies, against Python's json as the oracle."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from lupa.lua54 import LuaRuntime

from dataplane.gateway import lua_settings
from tests.dataplane.gateway import orders

NOT_SEEN, SEEN, AMBIGUOUS = 0, 1, 2
WHOLE, FORM, EMPTY, NOT_AN_OBJECT = 1, 2, 4, 8


def _features() -> Any:
    runtime = LuaRuntime(encoding=None, unpack_returned_tuples=True)
    order = orders.order(80, [orders.model("m", ["a"])], [])
    source = lua_settings.settings(order) + orders.TEMPLATES.features_lua + orders.TEMPLATES.gateway_lua
    module = runtime.execute(source.encode())
    make_env = runtime.execute(
        b"""return function(hash, block_hash, header, names)
          local keys = names and {}
          for i = 1, names and #names or 0 do keys[i] = {name = names[i], header = names[i]:sub(1, 2) == "x-"} end
          return {
            hash = function(_, text) return hash(text) end,
            block_hash = function(_, text) return block_hash(text) end,
            header = function(_, name) return header(name) end,
            session_keys = function() return keys end,
          }
        end"""
    )
    table = runtime.table_from
    return module, make_env, table


MODULE, MAKE_ENV, TABLE = _features()


@dataclass
class Record:
    kind: int
    flags: int
    state: int
    body_bytes: int
    prompt_bytes: int
    max_tokens: int
    model: bytes
    session: bytes
    pin: bytes
    hashes: list[int]


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def signed_hash(text: bytes) -> int:
    return signed(xxhash.xxh64_intdigest(text))


def signed_block_hash(text: bytes) -> int:
    return signed(xxhash.xxh3_64_intdigest(text))


def record(
    body: bytes,
    kind: int = 1,
    *,
    whole: bool = True,
    body_bytes: int | None = None,
    headers: dict[str, str] | None = None,
    session_keys: tuple[str, ...] = (),
) -> Record:
    def header(name: bytes) -> bytes | None:
        value = (headers or {}).get(name.decode())
        return value.encode() if value is not None else None

    keys = TABLE([key.encode() for key in session_keys]) if session_keys else None
    env = MAKE_ENV(signed_hash, signed_block_hash, header, keys)
    data, _ = MODULE[b"record"](body, kind, whole, len(body) if body_bytes is None else body_bytes, env)
    version, found_kind, flags, state, size, prompt, tokens = struct.unpack_from("<BBBBIII", data)
    assert version == 1
    at = 16
    strings: list[bytes] = []
    for _ in range(3):
        length = data[at]
        strings.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    hashes = [value for (value,) in struct.iter_unpack("<Q", data[at:])]
    model, session, pin = strings
    return Record(found_kind, flags, state, size, prompt, tokens, model, session, pin, hashes)


def blocks(data: bytes) -> list[int]:
    return [xxhash.xxh3_64_intdigest(data[at : at + 4096]) for at in range(0, len(data), 4096)]


def body_of(*members: tuple[str, object]) -> bytes:
    return json.dumps(dict(members)).encode()


LONG = [{"role": "user", "content": "word " * 20_000}]


@pytest.mark.parametrize(
    ("body", "state", "model"),
    [
        (b'{"model":"m","messages":[]}', SEEN, b"m"),
        (b'{"messages":[{"role":"user","content":"hi"}],"model":"org/m-7b"}', SEEN, b"org/m-7b"),
        (body_of(("messages", LONG), ("model", "m"), ("stream", True), ("stop", ["}", "]"])), SEEN, b"m"),
        (body_of(("model", "m"), ("messages", LONG)), SEEN, b"m"),
        (b' \r\n{ "stream" : true ,\n "model" : "m" , "prompt" : "x" }\n', SEEN, b"m"),
        (b'{"messages":[{"content":"\\"model\\": \\"x\\""}],"model":"m"}', SEEN, b"m"),
        (b'{"messages":[{"role":"model","content":"model"}],"model":"m"}', SEEN, b"m"),
        (b'{"metadata":{"model":"inner"},"messages":[]}', NOT_SEEN, b""),
        (b'[{"model":"m"}]', NOT_SEEN, b""),
        (b'{"messages":[]}', NOT_SEEN, b""),
        (b"{}", NOT_SEEN, b""),
        (b'{"model":"a","model":"b"}', AMBIGUOUS, b""),
        (b'{"metadata":{"model":"inner"},"model":"m"}', AMBIGUOUS, b""),
        (b'{"model":5}', AMBIGUOUS, b""),
        (b'{"model":null}', AMBIGUOUS, b""),
        (b'{"model":"m\\u0061"}', AMBIGUOUS, b""),
        (b'{"model":"m","mod\\u0065l":"x"}', AMBIGUOUS, b""),
        (b'{"model":"' + b"x" * 300 + b'"}', AMBIGUOUS, b""),
        (body_of(("messages", LONG), ("model", "m"), ("metadata", LONG)), AMBIGUOUS, b""),
    ],
)
def test_model_is_seen_or_left_to_the_exact_reader(body: bytes, state: int, model: bytes) -> None:
    got = record(body)
    assert (got.state, got.model) == (state, model)


keys = st.sampled_from(["model", "messages", "user", "metadata", "a", "mod", 'x"model', "model\\", "é"])
texts = st.one_of(
    st.sampled_from(["m", "model", '"model"', '"model":"x"', ', "model": ', "{", "}", "[]", "\\", '\\"', "é\n"]),
    st.text(max_size=12),
)
values = st.recursive(
    st.one_of(texts, st.none(), st.booleans(), st.integers(-5, 10**6)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.lists(st.tuples(keys, inner), max_size=4).map(tuple)),
    max_leaves=12,
)


def text_of(value: object, ascii_only: bool, space: str) -> str:
    """JSON in which a tuple of pairs is an object, duplicate keys included."""
    if isinstance(value, tuple):
        inner = f"{space},{space}".join(
            f"{json.dumps(k, ensure_ascii=ascii_only)}{space}:{space}{text_of(v, ascii_only, space)}" for k, v in value
        )
        return "{" + space + inner + space + "}"
    if isinstance(value, list):
        return "[" + f"{space},{space}".join(text_of(v, ascii_only, space) for v in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    members=st.lists(st.tuples(keys, values), max_size=6).map(tuple),
    padding=st.sampled_from([0, 0, 3000, 9000]),
    place=st.integers(0, 6),
    ascii_only=st.booleans(),
    space=st.sampled_from(["", " ", "\n\t"]),
)
def test_a_seen_model_is_what_json_says(
    members: tuple[tuple[str, object], ...], padding: int, place: int, ascii_only: bool, space: str
) -> None:
    if padding:
        members = (*members[:place], ("prompt", 'pad "quoted" ' * (padding // 13)), *members[place:])
    body = text_of(members, ascii_only, space).encode()
    truth = json.loads(body)
    got = record(body)
    if got.state == SEEN:
        assert got.model.decode() == truth["model"]
    elif got.state == NOT_SEEN:
        assert "model" not in truth
    exact_state, exact = MODULE[b"exact_model"](body, 262144)
    if exact_state == SEEN:
        assert exact.decode() == truth["model"]
    elif exact_state == NOT_SEEN:
        assert "model" not in truth


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    body=st.one_of(st.binary(max_size=400), st.text('{}[]":,\\ modelu06', max_size=200).map(str.encode)),
    kind=st.integers(1, 13),
)
def test_any_bytes_make_a_record(body: bytes, kind: int) -> None:
    got = record(
        body,
        kind,
        session_keys=("user", "prompt_cache_key"),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert got.kind == kind
    assert got.body_bytes == len(body)


@pytest.mark.parametrize("size", [10, 4096, 5000, 100_000, 131_072, 200_000])
def test_blocks_are_hashed_over_the_first_128_kib_from_the_prompt(size: int) -> None:
    body = b'{"stream":true,"messages":"' + b"x" * size + b'","model":"m"}'
    got = record(body)
    start = body.index(b'"messages"')
    assert got.prompt_bytes == len(body) - start
    assert got.hashes == blocks(body[start:131_072])


def test_the_prompt_begins_at_the_first_of_three_words() -> None:
    body = b'{"input":1,"prompt":2,"messages":3,"model":"m"}'
    assert record(body).prompt_bytes == len(body) - body.index(b'"input"')
    assert record(b'{"model":"m","query":"x"}').hashes == []


def test_flags() -> None:
    assert record(b"").flags == WHOLE | EMPTY
    assert record(b'{"a":1').flags == WHOLE | NOT_AN_OBJECT
    assert record(b'"a"}').flags == WHOLE | NOT_AN_OBJECT
    assert record(b' {"a":1} \n').flags == WHOLE
    cut = record(b'{"model":"m","messages":"xx', whole=False, body_bytes=20_000_000)
    assert (cut.flags, cut.state, cut.model, cut.body_bytes) == (0, SEEN, b"m", 20_000_000)
    assert record(b'{"messages":"', whole=False, body_bytes=1 << 40).body_bytes == 0xFFFFFFFF


def test_the_header_names_the_model_only_when_the_body_does_not() -> None:
    headers = {"x-slipstream-model": "h"}
    assert record(b'{"messages":"', whole=False, headers=headers).model == b"h"
    assert record(b'{"model":"m"}', headers=headers).model == b"m"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"messages":[],"model":"m","max_tokens":64}', 64),
        (b'{"messages":[],"model":"m","max_completion_tokens": 7 ,"stream":true}', 7),
        (b'{"model":"m","max_tokens":9,"messages":[{"content":"x"}]}', 9),
        (b'{"messages":[],"model":"m","max_tokens":99999999999999999999}', 0),
        (b'{"messages":[],"model":"m","metadata":{"max_tokens":5}}', 0),
        (b'{"messages":[{"content":"\\"max_tokens\\":5"}],"model":"m"}', 0),
    ],
)
def test_max_tokens(body: bytes, tokens: int) -> None:
    assert record(body).max_tokens == tokens


def test_session_keys_by_precedence_and_only_at_the_top() -> None:
    body = b'{"messages":[{"role":"user","user":"inner"}],"model":"m","prompt_cache_key":"k"}'
    assert record(body, session_keys=("user", "prompt_cache_key")).session == b"prompt_cache_key=k"
    headers = {"x-session-id": "s1"}
    assert record(body, session_keys=("x-session-id", "user"), headers=headers).session == b"x-session-id=s1"
    assert record(b'{"user":"u","model":"m"}', session_keys=("user",)).session == b"user=u"
    assert record(b'{"user":"u","model":"m"}').session == b""
    long = record(b'{"user":"' + b"u" * 252 + b'","model":"m"}', session_keys=("user",)).session
    assert long == b"user=#%016x" % xxhash.xxh64_intdigest(b"u" * 252, 0)


def test_pins() -> None:
    body = b'{"model":"m","input":"x","previous_response_id":"resp_00ab12cd_0123"}'
    assert record(body, 3).pin == b"00ab12cd"
    assert record(body, 1).pin == b""
    assert record(b'{"model":"m","previous_response_id":"resp_x"}', 3).pin == b""
    data = MODULE[b"response_record"](b"resp_00ab12cd_0123")
    assert data[:4] == bytes((1, 14, 5, 0)) and data.endswith(b"\x0800ab12cd")


def form(*fields: tuple[str, bytes], boundary: str = "b0undary") -> bytes:
    parts = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in fields
    )
    return parts + f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize(
    ("body", "state", "model"),
    [
        (form(("file", b"\x00\xff" * 5000), ("model", b"whisper")), SEEN, b"whisper"),
        (form(("model", b"whisper"), ("file", b"x")), SEEN, b"whisper"),
        (form(("file", b"x")), NOT_SEEN, b""),
        (form(("model", b"a"), ("model", b"b")), AMBIGUOUS, b""),
        (
            form(
                ("file", b'Content-Disposition: form-data; name="model"\r\n\r\nfake\r\n--other'),
            ),
            AMBIGUOUS,
            b"",
        ),
    ],
)
def test_multipart_forms(body: bytes, state: int, model: bytes) -> None:
    got = record(body, 10, headers={"content-type": "multipart/form-data; boundary=b0undary"})
    assert (got.state, got.model, got.hashes) == (state, model, [])
    assert got.flags & FORM
