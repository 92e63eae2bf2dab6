"""Features of a request whose body HAProxy sent as it came (docs/contracts.md, message `whole`).

A short body is decoded once, as exact JSON. In a long one only the ends are read as long as they leave no doubt,
because decoding costs 0.3 ns a byte and nearly every client writes `model` first or last: what the ends tell is what
the decoder would tell of any JSON object whose names are unique, as RFC 8259 asks. Any doubt goes to the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

import msgspec
import xxhash

from controlplane.routing.body import (
    MAX_MODEL_BYTES,
    MAX_SESSION_BYTES,
    block_hashes,
    from_body,
    pin_of,
    prompt_start,
)
from controlplane.routing.errors import MalformedFeatures
from controlplane.routing.record import (
    EMPTY_BODY,
    KIND_NUMBERS,
    MULTIPART,
    MULTIPART_KINDS,
    RESPONSE,
    U32,
    WHOLE_BODY,
    Request,
)

#: Measured: from here on reading the ends (some 3 us) is cheaper than decoding the body.
DECODED_BYTES = 12_288
#: Bytes at each end of a long body that are read as JSON.
END_BYTES = 4_096
#: Strings and brackets before or after a name that the ends are searched through; then the decoder is faster.
MAX_TOKENS = 48
#: Bytes of white space around a name that are skipped.
MAX_SPACE = 64
RESPONSES = KIND_NUMBERS["responses"]

Octets: TypeAlias = bytes | memoryview
#: (name, value) of the session headers that a request has.
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
#: model, user, prompt_cache_key, pin and max_tokens of a body.
_Told: TypeAlias = tuple[bytes, str | None, str | None, bytes, int]


class _Fields(msgspec.Struct, gc=False):
    """What routing reads of a body; one whose fields have other types is left to the exact reader's errors."""

    model: str = ""
    user: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


_decode = msgspec.json.Decoder(_Fields).decode
_MODEL = b'"model"'
_STRING = rb'[ \t\r\n]{0,64}:[ \t\r\n]{0,64}"([^"\\\x00-\x1f]{1,255})"[ \t\r\n]{0,64}'
_VALUE = _STRING + rb"[,}]"
_named = re.compile(rb'"model"' + _VALUE).match
_first = re.compile(rb'[ \t\r\n]{0,64}\{[ \t\r\n]{0,64}"model"' + _VALUE).match
#: Nothing is nested or escaped from here to the end: the name is one of the outermost object's.
_named_last = re.compile(rb'"model"' + _STRING + rb'[^{}\[\]"\\]*+(?:"[^"\\]*+"[^{}\[\]"\\]*+)*+\}[ \t\r\n]*+\Z').match
_tokens = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]"]', re.DOTALL).finditer
_FORM = re.compile(rb"multipart/form-data[ \t]*;", re.IGNORECASE)
#: Every letter of "model" is \u006x when it is escaped.
_ESCAPED = b"\\u006"
_SPACE = b" \t\r\n"
_BODY_KEYS = (b"user", b"prompt_cache_key")
_NO_KEYS: Mapping[bytes, tuple[bytes, ...]] = {}
_new = tuple.__new__


def from_whole(
    kind: int,
    size: int,
    body: Octets,
    model: bytes = b"",
    headers: Headers = (),
    tenant: bytes = b"",
    content_type: bytes = b"",
    session_keys: Mapping[bytes, tuple[bytes, ...]] = _NO_KEYS,
) -> Request:
    """Return the features of a request; its model is in the body, or else the one that a header named.

    ``size`` is the body's length in bytes as announced, 0 when it was not; ``body`` is all of it unless it is shorter.
    ``headers`` are the session headers that the request has, in order of precedence. ``session_keys`` has each name
    that is routed by session, and its keys in order (none: every header, then the body's); for all others no session
    is looked for. Raises MalformedFeatures for a kind that does not exist or a name that is too long.
    """
    length = len(body)
    told: _Told | None = None
    if length >= size and kind < RESPONSE and kind not in MULTIPART_KINDS and len(model) <= MAX_MODEL_BYTES:
        if length >= DECODED_BYTES and kind != RESPONSES and (not session_keys or headers):
            named = _ends(body)
            if named and (named not in session_keys or _header_first(headers, session_keys[named])):
                told = (named, None, None, b"", 0)
        told = told or _decoded(body)
    if told is None or kind <= 0:
        return _exact(kind, size, body, model, headers, tenant, content_type, session_keys)
    named, user, cache_key, pin, max_tokens = told
    start = prompt_start(body)
    name = named or model
    session = b""
    if name in session_keys:
        session = _session(session_keys[name], headers, user, cache_key)
    return _new(
        Request,
        (
            bool(name) and not pin,
            kind,
            WHOLE_BODY,
            name,
            session,
            pin,
            b"" if start < 0 else block_hashes(body, start),
            length,
            0 if start < 0 else length - start,
            max_tokens,
            tenant,
            "",
            "model_required",
        ),
    )


def _exact(
    kind: int,
    size: int,
    body: Octets,
    model: bytes,
    headers: Headers,
    tenant: bytes,
    content_type: bytes,
    session_keys: Mapping[bytes, tuple[bytes, ...]],
) -> Request:
    """Read any body, also one that is cut, empty or wrong, with the error that it deserves."""
    if not 0 < kind <= RESPONSE:
        raise MalformedFeatures("the request kind is not defined")
    if len(model) > MAX_MODEL_BYTES:
        raise MalformedFeatures("a model's name has at most 255 bytes")
    whole = len(body) >= size
    form = kind in MULTIPART_KINDS and (not content_type or _FORM.match(content_type) is not None)
    asked = Request(
        plain=False,
        kind=kind,
        flags=(WHOLE_BODY if whole else 0) | (MULTIPART if form else 0) | (0 if len(body) else EMPTY_BODY),
        model=model,
        session=b"",
        pin=b"",
        hashes=b"",
        body_bytes=min(max(size, len(body)), U32),
        prompt_bytes=0,
        max_tokens=0,
        tenant=tenant,
        error="",
        missing="response_not_found" if kind == RESPONSE else "model_required",
    )
    if kind == RESPONSE:
        return asked
    told = from_body(asked, bytes(body), whole)
    keys = session_keys.get(told.model)
    if keys is None:
        return told._replace(session=b"")
    if _header_first(headers, keys) or not told.session:
        return told._replace(session=_session(keys, headers, "", ""))
    return told


def _header_first(headers: Headers, keys: tuple[bytes, ...]) -> bool:
    """Return whether a header names the session before any field of the body can."""
    if not keys:
        return bool(headers)
    names = [name for name, _ in headers]
    for key in keys:
        if key in names:
            return True
        if key in _BODY_KEYS:
            return False
    return True


def _session(keys: tuple[bytes, ...], headers: Headers, user: str | None, cache_key: str | None) -> bytes:
    """Return ``<key>=<value>`` of the first key that the request has, or a hash for a value that is too long."""
    found = dict(headers)
    for key, value in zip(_BODY_KEYS, (user, cache_key), strict=True):
        if value:
            found[key] = value.encode()
    for key in keys or found:
        told = found.get(key)
        if told:
            if len(key) + len(told) < MAX_SESSION_BYTES:
                return key + b"=" + told
            return key + b"=#" + xxhash.xxh64_hexdigest(told).encode()
    return b""


def _decoded(body: Octets) -> _Told | None:
    """Return model, user, cache key, pin and max_tokens; None when this is not an object with the usual types."""
    try:
        fields = _decode(body)
        model = fields.model.encode()
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    told = fields.max_completion_tokens
    if told is None:
        told = fields.max_tokens
        if told is None:
            told = fields.max_output_tokens or 0
    max_tokens = told if 0 <= told <= U32 else min(max(told, 0), U32)
    pin = pin_of(fields.previous_response_id) if fields.previous_response_id else b""
    return model, fields.user, fields.prompt_cache_key, pin, max_tokens


def _ends(body: Octets) -> bytes:
    """Find the outermost ``model`` of a long whole body in its ends; empty when that leaves a doubt."""
    tail = bytes(body[-END_BYTES:])
    if bytes(body[:MAX_SPACE]).lstrip(_SPACE)[:1] != b"{" or tail[-MAX_SPACE:].rstrip(_SPACE)[-1:] != b"}":
        return b""
    at = tail.rfind(_MODEL)
    if at >= 0:  # the last one in the body: of equal names the last counts
        if not _stands_for_a_name(tail, at):
            return b""
        found = _named_last(tail, at)
        if found is None:
            found = _named(tail, at)
            if found is None or _escaped(tail[at:]) or _depth_change(tail[at:]) != -1:
                return b""
        return found[1]
    head = bytes(body[:END_BYTES])
    found = _first(head)
    if found is None:
        at = head.find(_MODEL)
        found = _named(head, at) if at > 0 else None
        if found is None or not _stands_for_a_name(head, at) or _depth_change(head[:at]) != 1:
            return b""
    if _escaped(head) or _escaped(tail) or head.find(_MODEL, found.end(1)) >= 0:
        return b""
    return found[1]


def _escaped(text: bytes) -> bool:
    """Return whether a letter of "model" may be escaped; one byte is found many times as fast as several."""
    return b"\\" in text and _ESCAPED in text


def _stands_for_a_name(text: bytes, at: int) -> bool:
    """Return whether the string that opens at ``at`` follows ``{`` or ``,``; within a string its quote is escaped."""
    return text[max(0, at - MAX_SPACE) : at].rstrip(_SPACE)[-1:] in (b"{", b",")


def _depth_change(text: bytes) -> int | None:
    """Return how much deeper the nesting is after ``text`` than before; None when a string is open or it is long."""
    depth = 0
    for count, token in enumerate(_tokens(text)):
        word = token[0]
        if word in (b"{", b"["):
            depth += 1
        elif word in (b"}", b"]"):
            depth -= 1
        elif word == b'"' or count > MAX_TOKENS:
            return None
    return depth
