"""The SPOE messages `route`, `full` and `whole`, and the variables that answer them.

``read_question`` reads the frames that make up nearly all traffic straight from the bytes, many times as fast as the
general decoder; every other frame, malformed ones included, is left to that one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controlplane.router.spop.errors import ProtocolError
from controlplane.router.spop.frames import Message, Notify, Scope, SetVar, UnsetVar, encode_action
from controlplane.router.spop.values import Kind, Typed, decode_string, decode_typed, encode_varint
from controlplane.routing.admission.settings import DEFAULT_PRIORITY, priority_of

_ID = rb"(?:[\x00-\xef]|[\xf0-\xff][\x80-\xff]{0,7}[\x00-\x7f])"
#: An unfragmented NOTIFY up to the request id of fewer than 240 bytes.
_ROUTE_HEAD = re.compile(rb"\x03\0\0\0\x01(" + _ID + _ID + rb")\x05route\x03\x02id\x08([\x01-\xef])", re.DOTALL)
#: An unfragmented NOTIFY `whole` up to the value of `size`, when its strings are printable.
_WHOLE_HEAD = re.compile(
    rb"\x03\0\0\0\x01("
    + _ID
    + _ID
    + rb")\x05whole([\x05-\x20])\x02id\x08([\x01-\xef])([!-~]+)\x04kind[\x02-\x05]([\0-\xef])"
    + rb"\x06tenant(?:\0|\x08([\0-\xef])([!-~]*))\x04size[\x02-\x05]("
    + _ID
    + rb")",
    re.DOTALL,
).match
_BODY = b"\x04body"
#: The arguments between `size` and `body` are looked for within this much.
_MAX_OPTIONS = 4096
#: Encoded arguments between `size` and `body` that are kept decoded: without session headers all requests have one.
_MAX_OPTIONS_KEPT = 64
#: Bodies from here on are not copied out of the frame.
_COPIED = 8192
#: Sizes below this fit into every type that an integer may have.
_MAX_SIZE = 1 << 31
#: id, kind, tenant, size and body.
_ALWAYS = 5
_HEADER = b"h."
_RECORD_HEADS = (b"\x01f\x08", b"\x01f\x09")
_TENANT_HEAD = b"\x06tenant\x08"
_NO_TENANT = b"\x06tenant\x00"
_TEXT = (Kind.STRING, Kind.BINARY)
_INTEGERS = (Kind.INT32, Kind.UINT32, Kind.INT64, Kind.UINT64)
_NULL = Typed(Kind.NULL, None)
_FIXED = {b"id", b"kind", b"tenant", b"size", b"body"}

_ACK_HEAD = struct.Struct(">IBI")
_ACK = 103
_FIN = 1
_ACK_HEAD_BYTES = 5


class Question(NamedTuple):
    """One `route` or `full` message."""

    ids: bytes  # stream id and frame id as they came: the answer repeats them
    request_id: bytes
    record: bytes
    tenant: bytes
    body: bytes | None  # None: a `route` message
    priority: int


class Whole(NamedTuple):
    """One `whole` message; ``body`` is a view of what was received when it is long, and good until the next read."""

    ids: bytes
    request_id: bytes
    kind: int
    tenant: bytes
    size: int
    options: Options
    body: bytes | memoryview


class Wait(NamedTuple):
    """One `wait` message: the request is still there."""

    ids: bytes
    request_id: bytes


class Options(NamedTuple):
    """What only some requests have: a model and session headers (name, value), a form's content type, a priority."""

    model: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    content_type: bytes
    priority: int


_NO_OPTIONS = Options(b"", (), b"", DEFAULT_PRIORITY)
#: Arguments as they came, their number in front -> what they say.
_options_kept: dict[bytes, Options] = {}


#: Makes a tuple without the keyword handling of the class: this runs for every request.
_new = tuple.__new__


def read_route(data: bytes, start: int, stop: int) -> Question | None:
    """Return the question in the frame ``data[start:stop]``, or None when it takes the general decoder to read it."""
    head = _ROUTE_HEAD.match(data, start, stop)
    if head is None:
        return None
    at = head.end()
    try:
        end = at + data[at - 1]
        request_id = data[at:end]
        at = end + 4
        if data[end : end + 3] not in _RECORD_HEADS:
            return None
        size = data[end + 3]
        if size >= 240:
            size += data[at] << 4
            at += 1
            if size >= 2288:  # the byte had its high bit set: one more follows
                size += data[at] << 11
                at += 1
                if size >= 264_432:
                    return None
        end = at + size
        record = data[at:end]
        at = end + 9
        if at == stop and data[end:at] == _TENANT_HEAD + b"\x00":
            tenant = b""
        elif data[end : end + 8] == _TENANT_HEAD and data[end + 8] < 240:
            tenant = data[at : at + data[end + 8]]
            at += data[end + 8]
        elif data[end : end + 8] == _NO_TENANT:
            tenant = b""
            at = end + 8
        else:
            return None
    except IndexError:
        return None
    return _new(Question, (head[1], request_id, record, tenant, None, DEFAULT_PRIORITY)) if at == stop else None


def read_question(data: bytes | bytearray, start: int, stop: int) -> Question | Whole | None:
    """Return the question in the frame ``data[start:stop]``, or None when it takes the general decoder to read it."""
    head = _WHOLE_HEAD(data, start, stop)
    if head is None:
        if isinstance(data, bytes):
            return read_route(data, start, stop)
        return read_route(bytes(memoryview(data)[start:stop]), 0, stop - start)
    ids, count, id_size, request_id, kind, tenant_size, tenant, size = head.groups()
    if len(request_id) != id_size[0] or (tenant is not None and len(tenant) != tenant_size[0]):
        return None
    at = head.end()
    body = data.find(_BODY, at, at + _MAX_OPTIONS)
    if body < 0:
        return None
    told = count + data[at:body]
    options = _options_kept.get(told)
    if options is None:
        options = _read_options(told)
        if options is None:
            return None
    begin = _body_begin(data, body + 5, stop)
    number = size[0] if len(size) == 1 else _long(size)
    if not begin or number >= _MAX_SIZE:
        return None
    length = stop - begin
    text: bytes | memoryview = memoryview(data)[begin:stop]
    if length < _COPIED:
        text = bytes(text)
    return _new(Whole, (ids, request_id, kind[0], tenant or b"", number, options, text))


def _long(encoded: bytes) -> int:
    """Read a well-formed integer of several bytes."""
    value, shift = encoded[0], 4
    for byte in encoded[1:]:
        value += byte << shift
        shift += 7
    return value


def _body_begin(data: bytes | bytearray, at: int, stop: int) -> int:
    """Return where the string begins whose type is at ``at`` and which ends the frame; 0 when none does."""
    if stop - at < 2 or data[at] not in (Kind.STRING, Kind.BINARY):
        return 0
    at += 1
    size = data[at]
    if size >= 240:
        end = at + 1
        while end < stop - 1 and data[end] >= 128 and end - at < 4:
            end += 1
        size = _long(bytes(data[at : end + 1]))
        at = end
    return at + 1 if at + 1 + size == stop else 0


def _read_options(told: bytes) -> Options | None:
    """Read the arguments between `size` and `body`, their whole number in front; None when they are malformed."""
    at = 1
    arguments: list[tuple[bytes, Typed]] = []
    try:
        while at < len(told):
            name, at = decode_string(told, at)
            value, at = decode_typed(told, at)
            arguments.append((name, value))
    except ProtocolError:
        return None
    names = {name for name, _ in arguments}
    if len(arguments) + _ALWAYS != told[0] or len(names) != len(arguments) or names & _FIXED:
        return None
    options = _options(arguments)
    if not options.headers and not options.model:
        if len(_options_kept) >= _MAX_OPTIONS_KEPT:
            _options_kept.clear()
        _options_kept[told] = options
    return options


def _options(arguments: Iterable[tuple[bytes, Typed]]) -> Options:
    texts = [(name, text) for name, value in arguments if (text := _text(value))]
    if not texts:
        return _NO_OPTIONS
    named = dict(texts)
    headers = tuple((name[len(_HEADER) :], text) for name, text in texts if name.startswith(_HEADER))
    return Options(named.get(b"model", b""), headers, named.get(b"type", b""), _priority(named))


def _priority(texts: Mapping[bytes, bytes | None]) -> int:
    return priority_of(texts.get(b"priority") or b"", texts.get(b"allowed") or b"")


def read_notify(notify: Notify) -> tuple[bytes, Question | Whole | Wait | None]:
    """Return the ids to repeat, and the question; None when the frame holds none of ours or it lacks an argument."""
    ids = encode_varint(notify.stream_id) + encode_varint(notify.frame_id)
    for message in notify.messages:
        if message.name == b"whole":
            return ids, _whole(ids, message)
        if message.name in (b"route", b"full"):
            return ids, _question(ids, message)
        if message.name == b"wait":
            request_id = _text(dict(message.arguments).get(b"id", _NULL))
            return ids, Wait(ids, request_id) if request_id else None
    return ids, None


def _question(ids: bytes, message: Message) -> Question | None:
    texts = {name: _text(value) for name, value in message.arguments}
    request_id, record = texts.get(b"id"), texts.get(b"f")
    if not request_id or record is None:
        return None
    body = (texts.get(b"body") or b"") if message.name == b"full" else None
    return Question(ids, request_id, record, texts.get(b"tenant") or b"", body, _priority(texts))


def _whole(ids: bytes, message: Message) -> Whole | None:
    """Read a `whole` message; arguments are known by name, and the last of equal names counts."""
    values = dict(message.arguments)
    request_id, body = _text(values.get(b"id", _NULL)), _text(values.get(b"body", _NULL))
    kind, size = _number(values.get(b"kind", _NULL)), _number(values.get(b"size", _NULL))
    if not request_id or kind is None:
        return None
    tenant = _text(values.get(b"tenant", _NULL)) or b""
    options = _options(values.items())
    return Whole(ids, request_id, kind, tenant, size or 0, options, body or b"")


def _number(value: Typed) -> int | None:
    return value.value if value.kind in _INTEGERS and isinstance(value.value, int) else None


def _text(value: Typed) -> bytes | None:
    return value.value if value.kind in _TEXT and isinstance(value.value, bytes) else None


def variables(**values: bytes) -> bytes:
    """Return the payload of an answer that sets these transaction variables."""
    return b"".join(
        encode_action(SetVar(Scope.TRANSACTION, name.encode(), Typed.string(value))) for name, value in values.items()
    )


#: Payload that ends a wait: HAProxy asks no more.
NO_LONGER = encode_action(UnsetVar(Scope.TRANSACTION, b"later"))


def answer(ids: bytes, payload: bytes) -> bytes:
    """Return the ACK frame for the NOTIFY with ``ids``."""
    return _ACK_HEAD.pack(_ACK_HEAD_BYTES + len(ids) + len(payload), _ACK, _FIN) + ids + payload
