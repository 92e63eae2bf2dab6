"""The same features, read from the body itself: exact JSON when it is whole, a search when it is cut."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import msgspec
import xxhash

from controlplane.routing.errors import MalformedFeatures
from controlplane.routing.load import BLOCK_BYTES
from controlplane.routing.multipart import form_model
from controlplane.routing.record import KIND_NUMBERS, KINDS, MULTIPART, MULTIPART_KINDS, RESPONSE, U32, Request

#: Bytes of a body that HAProxy sends at most, and of one that is read here.
MAX_BODY_BYTES = 1_000_000
#: Blocks are hashed within this much of the body.
HASHED_BYTES = 131_072
#: Bytes of a model's name that are looked up: the feature record's limit.
MAX_MODEL_BYTES = 255
MAX_SESSION_BYTES = 255
#: Strings and brackets that the search looks at before it gives up; about 5 ms.
MAX_TOKENS_SEARCHED = 20_000
#: Prefix hashes that a gRPC caller may send: 16 MiB of prompt.
MAX_PREFIX_HASHES = 4_096
#: Top-level keys that name a session, in order of precedence; headers come before them.
SESSION_KEYS = ("user", "prompt_cache_key")

_prompt = re.compile(rb'"(?:messages|prompt|input)"').search
_hash = xxhash.xxh3_64_intdigest
_BLOCKS = tuple(slice(at, at + BLOCK_BYTES) for at in range(0, HASHED_BYTES, BLOCK_BYTES))
#: By number of hashes.
_packed = tuple(struct.Struct(f"<{count}Q").pack for count in range(len(_BLOCKS) + 1))
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_RESPONSE_ID = re.compile(r"resp_([0-9a-fA-F]{8})_[0-9A-Za-z_-]{1,128}")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_number = msgspec.json.Decoder(int)
_NOTHING = msgspec.Raw(b"null")


def block_hashes(data: bytes | memoryview, start: int = 0) -> bytes:
    """Return the xxh3 of each 4,096-byte block from ``start`` to the 131,072nd byte.

    8 bytes each, as docs/contracts.md defines it.
    """
    end = min(len(data), HASHED_BYTES)
    if end - start <= BLOCK_BYTES:
        return _packed[1](_hash(data[start:end])) if end > start else b""
    view = memoryview(data)[start:end]
    count = -(-len(view) // BLOCK_BYTES)
    return _packed[count](*[_hash(view[block]) for block in _BLOCKS[:count]])


def prompt_start(body: bytes | memoryview) -> int:
    """Return where the first of ``"messages"``, ``"prompt"``, ``"input"`` begins in the first 128 KiB; else -1."""
    found = _prompt(body, 0, HASHED_BYTES)
    return found.start() if found else -1


def from_body(request: Request, body: bytes, complete: bool, session_keys: Sequence[str] = SESSION_KEYS) -> Request:
    """Return ``request`` with what its body tells; never raises.

    ``complete`` says that ``body`` (at most 1,000,000 bytes) is the whole of it. The result carries ``error`` or
    ``missing`` instead of asking again. Hashes and session that HAProxy already told are kept.
    """
    complete = complete and len(body) <= MAX_BODY_BYTES
    body = body[:MAX_BODY_BYTES]
    if not body.strip(b" \t\r\n"):
        return request._replace(plain=False, error="empty_body", missing="")
    request = _with_blocks(request, body)
    if request.flags & MULTIPART:
        model, error = form_model(body, complete)
        return _settled(request, model, error, complete)
    if not complete:
        model, error = _search(body)
        return _settled(request, model, error, complete)
    try:
        fields = _object.decode(body)
    except msgspec.ValidationError:
        return request._replace(plain=False, error="invalid_body", missing="")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return request._replace(plain=False, error="invalid_json", missing="")
    model, error = _text(fields.get("model", _NOTHING), "invalid_model")
    if not request.session:
        request = request._replace(session=_session(fields, session_keys))
    if not request.pin:
        request = request._replace(pin=_pin(fields))
    if not request.max_tokens:
        request = request._replace(max_tokens=_max_tokens(fields))
    return _settled(request, model, error, complete)


def from_parts(
    *,
    kind: str,
    model: str = "",
    session: str = "",
    tenant: str = "",
    body: bytes = b"",
    body_bytes: int = 0,
    prefix_hashes: Sequence[int] = (),
    session_keys: Sequence[str] = SESSION_KEYS,
) -> Request:
    """Return the features of a request that did not come through HAProxy.

    ``body`` may be the first part of ``body_bytes`` bytes (0: all of them). Raises MalformedFeatures for a kind that
    does not exist, a name or session that is too long, or hashes that are too many or no 64-bit numbers.
    """
    number = KIND_NUMBERS.get(kind)
    if number is None:
        raise MalformedFeatures(f"there is no request kind {kind[:40]!r}; kinds are {', '.join(KINDS[1:])}")
    if len(prefix_hashes) > MAX_PREFIX_HASHES:
        raise MalformedFeatures(f"there are at most {MAX_PREFIX_HASHES} prefix hashes")
    try:
        hashes = struct.pack(f"<{len(prefix_hashes)}Q", *prefix_hashes)
    except struct.error:
        raise MalformedFeatures("a prefix hash is not an unsigned 64-bit number") from None
    if len(model.encode()) > MAX_MODEL_BYTES or len(session.encode()) > MAX_SESSION_BYTES:
        raise MalformedFeatures("model and session have at most 255 bytes")
    request = Request(
        plain=bool(model),
        kind=number,
        flags=MULTIPART if number in MULTIPART_KINDS else 0,
        model=model.encode(),
        session=session.encode(),
        pin=b"",
        hashes=hashes,
        body_bytes=min(max(body_bytes, len(body)), U32),
        prompt_bytes=len(prefix_hashes) * BLOCK_BYTES,
        max_tokens=0,
        tenant=tenant.encode(),
        error="",
        missing="response_not_found" if number == RESPONSE else "model_required",
    )
    if not body:
        return request
    told = from_body(request, body, body_bytes <= len(body), session_keys)
    if model:  # the caller's word counts more than the body's
        return told._replace(model=request.model, plain=not told.pin, error="", missing="")
    return told


def pin_of(response_id: str) -> bytes:
    """Return the pin in a response's id; empty when it has none."""
    found = _RESPONSE_ID.fullmatch(response_id)
    return found.group(1).encode() if found else b""


def _settled(request: Request, model: bytes, error: str, complete: bool) -> Request:
    model = model or request.model  # a header named it
    missing = "model_required" if complete else "model_not_visible"
    plain = bool(model) and not error and not request.pin
    return request._replace(plain=plain, model=model, error=error, missing=missing)


def _with_blocks(request: Request, body: bytes) -> Request:
    if request.hashes:
        return request
    start = prompt_start(body)
    if start < 0:
        return request
    return request._replace(hashes=block_hashes(body, start), prompt_bytes=len(body) - start)


def _text(raw: msgspec.Raw, error: str) -> tuple[bytes, str]:
    """Return a JSON string's UTF-8 and no error; for null nothing; for anything else the error."""
    value = bytes(raw)
    if value == b"null":
        return b"", ""
    try:
        return _string.decode(value).encode(), ""
    except (msgspec.DecodeError, UnicodeError):
        return b"", error


def _session(fields: dict[str, msgspec.Raw], keys: Sequence[str]) -> bytes:
    for key in keys:
        raw = fields.get(key)
        if raw is not None:
            value, _ = _text(raw, "")
            if value:
                told = key.encode() + b"=" + value
                if len(told) <= MAX_SESSION_BYTES:
                    return told
                return key.encode() + b"=#" + xxhash.xxh64_hexdigest(value).encode()  # as HAProxy shortens it
    return b""


def _pin(fields: dict[str, msgspec.Raw]) -> bytes:
    value, _ = _text(fields.get("previous_response_id", _NOTHING), "")
    return pin_of(value.decode())


def _max_tokens(fields: dict[str, msgspec.Raw]) -> int:
    for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        raw = fields.get(key)
        if raw is not None:
            try:
                return min(max(_number.decode(bytes(raw)), 0), U32)
            except msgspec.DecodeError:
                return 0
    return 0


def _search(body: bytes) -> tuple[bytes, str]:
    """Find the top-level ``model`` in the first part of a JSON object; return it, or nothing, and an error."""
    if not body.lstrip(b" \t\r\n").startswith(b"{"):
        return b"", "invalid_body"
    depth = 0
    end = 0
    for count, token in enumerate(_TOKEN.finditer(body)):
        if count > MAX_TOKENS_SEARCHED:
            break
        if token.start() < end:
            continue
        word = token.group()
        if word in (b"{", b"["):
            depth += 1
        elif word in (b"}", b"]"):
            depth -= 1
            if depth <= 0:
                return b"", "invalid_json"  # more follows the object's end
        elif depth == 1 and _is_model(word):
            colon = _COLON.match(body, token.end())
            if colon is None:
                continue  # a value that says "model"
            value = _STRING.match(body, colon.end())
            if value is not None:
                return _text(msgspec.Raw(value.group()), "invalid_model")
            rest = body[colon.end() : colon.end() + 1]
            return b"", "invalid_model" if rest and rest not in (b'"', b"n") else ""
    return b"", ""


def _is_model(word: bytes) -> bool:
    if b"\\" not in word:
        return word == b'"model"'
    return _text(msgspec.Raw(word), "")[0] == b"model"
