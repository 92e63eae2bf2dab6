"""The SPOE messages `route` and `full`, and the variables that answer them.

``read_route`` reads the one frame that makes up nearly all traffic straight from the bytes, 7 times as fast as the
general decoder; every other frame, malformed ones included, is left to that one.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from controlplane.router.spop.frames import Message, Notify, Scope, SetVar, encode_action
from controlplane.router.spop.values import Kind, Typed, encode_varint

_ID = rb"(?:[\x00-\xef]|[\xf0-\xff][\x80-\xff]{0,7}[\x00-\x7f])"
#: An unfragmented NOTIFY up to the request id of fewer than 240 bytes.
_ROUTE_HEAD = re.compile(rb"\x03\0\0\0\x01(" + _ID + _ID + rb")\x05route\x03\x02id\x08([\x01-\xef])", re.DOTALL)
_RECORD_HEADS = (b"\x01f\x08", b"\x01f\x09")
_TENANT_HEAD = b"\x06tenant\x08"
_NO_TENANT = b"\x06tenant\x00"
_TEXT = (Kind.STRING, Kind.BINARY)

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
    return _new(Question, (head[1], request_id, record, tenant, None)) if at == stop else None


def read_notify(notify: Notify) -> tuple[bytes, Question | None]:
    """Return the ids to repeat, and the question; None when the frame holds none of ours or it lacks an argument."""
    ids = encode_varint(notify.stream_id) + encode_varint(notify.frame_id)
    for message in notify.messages:
        if message.name in (b"route", b"full"):
            return ids, _question(ids, message)
    return ids, None


def _question(ids: bytes, message: Message) -> Question | None:
    texts = {name: _text(value) for name, value in message.arguments}
    request_id, record = texts.get(b"id"), texts.get(b"f")
    if not request_id or record is None:
        return None
    body = (texts.get(b"body") or b"") if message.name == b"full" else None
    return Question(ids, request_id, record, texts.get(b"tenant") or b"", body)


def _text(value: Typed) -> bytes | None:
    return value.value if value.kind in _TEXT and isinstance(value.value, bytes) else None


def variables(**values: bytes) -> bytes:
    """Return the payload of an answer that sets these transaction variables."""
    return b"".join(
        encode_action(SetVar(Scope.TRANSACTION, name.encode(), Typed.string(value))) for name, value in values.items()
    )


def answer(ids: bytes, payload: bytes) -> bytes:
    """Return the ACK frame for the NOTIFY with ``ids``."""
    return _ACK_HEAD.pack(_ACK_HEAD_BYTES + len(ids) + len(payload), _ACK, _FIN) + ids + payload
