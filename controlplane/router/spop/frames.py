"""The frames of SPOP 2.0 in both directions (doc/SPOE.txt, 3.2 to 3.4).

``encode`` returns a frame with its four length bytes, ``decode`` takes a frame without them. HAProxy's own frames can
be encoded and an agent's decoded as well, so that tests and load generators speak with the same code.

What a frame may hold is bounded, so that decoding never allocates more than a small multiple of its size: a list of
named values or actions has at most MAX_ITEMS entries, a NOTIFY at most MAX_MESSAGES messages.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from controlplane.router.spop.errors import ProtocolError, Status
from controlplane.router.spop.values import (
    Kind,
    Typed,
    decode_string,
    decode_typed,
    decode_varint,
    encode_string,
    encode_typed,
    encode_varint,
    truncated,
)

#: HAProxy writes five entries into its HELLO and four arguments into our largest message; the rest is room.
MAX_ITEMS = 32
#: A NOTIFY holds the messages of one group or event; ours hold one.
MAX_MESSAGES = 8
#: Type, flags and two integers of one byte.
MIN_FRAME_BYTES = 7
#: The payload is whole: SPOP's fragmentation is never announced.
FIN = 1

_HEAD = struct.Struct(">BI")
_LENGTH = struct.Struct(">I")


class FrameType(IntEnum):
    """First byte of a frame."""

    UNSET = 0
    HAPROXY_HELLO = 1
    HAPROXY_DISCONNECT = 2
    NOTIFY = 3
    AGENT_HELLO = 101
    AGENT_DISCONNECT = 102
    ACK = 103


class Scope(IntEnum):
    """How long a variable lives."""

    PROCESS = 0
    SESSION = 1
    TRANSACTION = 2
    REQUEST = 3
    RESPONSE = 4


@dataclass(frozen=True, slots=True)
class HaproxyHello:
    """HAProxy opens a connection; ``versions`` and ``capabilities`` are comma-separated lists."""

    versions: bytes
    max_frame_bytes: int
    capabilities: bytes
    healthcheck: bool = False
    engine_id: bytes = b""


@dataclass(frozen=True, slots=True)
class AgentHello:
    """The agent accepts the connection."""

    version: bytes
    max_frame_bytes: int
    capabilities: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    """One side ends the connection; ``from_agent`` says which."""

    status: int
    message: bytes
    from_agent: bool


@dataclass(frozen=True, slots=True)
class Message:
    """What one spoe-message sends; names of arguments may be empty and need not be unique."""

    name: bytes
    arguments: tuple[tuple[bytes, Typed], ...]


@dataclass(frozen=True, slots=True)
class Notify:
    """HAProxy asks; the ACK repeats both ids."""

    stream_id: int
    frame_id: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class SetVar:
    """Action: give a variable a value."""

    scope: Scope
    name: bytes
    value: Typed


@dataclass(frozen=True, slots=True)
class UnsetVar:
    """Action: forget a variable."""

    scope: Scope
    name: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The agent answers one NOTIFY."""

    stream_id: int
    frame_id: int
    actions: tuple[SetVar | UnsetVar, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A frame of a type that SPOP 2.0 does not have; such frames are skipped."""

    type: int


Frame: TypeAlias = HaproxyHello | AgentHello | Disconnect | Notify | Ack | Unknown
_Items: TypeAlias = dict[bytes, Typed]


def encode(frame: HaproxyHello | AgentHello | Disconnect | Notify | Ack) -> bytes:
    """Return the frame's bytes, its length in front."""
    stream_id = frame_id = 0
    match frame:
        case HaproxyHello():
            kind = FrameType.HAPROXY_HELLO
            payload = _encode_items(_haproxy_hello_items(frame))
        case AgentHello():
            kind = FrameType.AGENT_HELLO
            payload = _encode_items(
                {
                    b"version": Typed.string(frame.version),
                    b"max-frame-size": Typed.uint32(frame.max_frame_bytes),
                    b"capabilities": Typed.string(frame.capabilities),
                }
            )
        case Disconnect():
            kind = FrameType.AGENT_DISCONNECT if frame.from_agent else FrameType.HAPROXY_DISCONNECT
            payload = _encode_items(
                {b"status-code": Typed.uint32(frame.status), b"message": Typed.string(frame.message)}
            )
        case Notify(stream_id, frame_id, messages):
            kind = FrameType.NOTIFY
            payload = b"".join(map(_encode_message, messages))
        case Ack(stream_id, frame_id, actions):
            kind = FrameType.ACK
            payload = b"".join(map(encode_action, actions))
    body = _HEAD.pack(kind, FIN) + encode_varint(stream_id) + encode_varint(frame_id) + payload
    return _LENGTH.pack(len(body)) + body


def encode_action(action: SetVar | UnsetVar) -> bytes:
    """Return one entry of an ACK's list of actions."""
    if isinstance(action, SetVar):
        return bytes((1, 3, action.scope)) + encode_string(action.name) + encode_typed(action.value)
    return bytes((2, 2, action.scope)) + encode_string(action.name)


def decode(data: bytes) -> Frame:
    """Read one frame, without its length bytes. Raises ProtocolError, and nothing else, when it is malformed."""
    if len(data) < MIN_FRAME_BYTES:
        raise truncated()
    number, flags = _HEAD.unpack_from(data)
    stream_id, at = decode_varint(data, _HEAD.size)
    frame_id, at = decode_varint(data, at)
    if not flags & FIN or number == FrameType.UNSET:
        raise ProtocolError(Status.NO_FRAGMENTATION, "payload fragmentation is not supported")
    match number:
        case FrameType.NOTIFY:
            return Notify(stream_id, frame_id, _decode_messages(data, at))
        case FrameType.ACK:
            return Ack(stream_id, frame_id, _decode_actions(data, at))
        case FrameType.HAPROXY_HELLO:
            return _haproxy_hello(_decode_items(data, at))
        case FrameType.AGENT_HELLO:
            return _agent_hello(_decode_items(data, at))
        case FrameType.HAPROXY_DISCONNECT | FrameType.AGENT_DISCONNECT:
            return _disconnect(_decode_items(data, at), from_agent=number == FrameType.AGENT_DISCONNECT)
    return Unknown(number)


def _haproxy_hello_items(hello: HaproxyHello) -> _Items:
    items = {
        b"supported-versions": Typed.string(hello.versions),
        b"max-frame-size": Typed.uint32(hello.max_frame_bytes),
        b"capabilities": Typed.string(hello.capabilities),
    }
    if hello.healthcheck:
        items[b"healthcheck"] = Typed(Kind.BOOLEAN, True)
    if hello.engine_id:
        items[b"engine-id"] = Typed.string(hello.engine_id)
    return items


def _encode_items(items: _Items) -> bytes:
    return b"".join(encode_string(name) + encode_typed(value) for name, value in items.items())


def _decode_items(data: bytes, at: int) -> _Items:
    items: _Items = {}
    while at < len(data):
        if len(items) == MAX_ITEMS:
            raise ProtocolError(Status.INVALID, f"a list has more than {MAX_ITEMS} items")
        name, at = decode_string(data, at)
        if name in items:
            raise ProtocolError(Status.INVALID, "an item is there twice")
        items[name], at = decode_typed(data, at)
    return items


def _encode_message(message: Message) -> bytes:
    parts = [encode_string(message.name), bytes((len(message.arguments),))]
    parts += [encode_string(name) + encode_typed(value) for name, value in message.arguments]
    return b"".join(parts)


def _decode_messages(data: bytes, at: int) -> tuple[Message, ...]:
    messages: list[Message] = []
    while at < len(data):
        if len(messages) == MAX_MESSAGES:
            raise ProtocolError(Status.INVALID, f"a NOTIFY has more than {MAX_MESSAGES} messages")
        name, at = decode_string(data, at)
        if at >= len(data):
            raise truncated()
        count = data[at]
        if count > MAX_ITEMS:
            raise ProtocolError(Status.INVALID, f"a message has more than {MAX_ITEMS} arguments")
        at += 1
        arguments: list[tuple[bytes, Typed]] = []
        for _ in range(count):
            key, at = decode_string(data, at)
            value, at = decode_typed(data, at)
            arguments.append((key, value))
        messages.append(Message(name, tuple(arguments)))
    return tuple(messages)


def _decode_actions(data: bytes, at: int) -> tuple[SetVar | UnsetVar, ...]:
    actions: list[SetVar | UnsetVar] = []
    while at < len(data):
        if len(actions) == MAX_ITEMS:
            raise ProtocolError(Status.INVALID, f"an ACK has more than {MAX_ITEMS} actions")
        head = data[at : at + 3]
        if len(head) < 3:
            raise truncated()
        if head[:2] not in (b"\x01\x03", b"\x02\x02") or head[2] > Scope.RESPONSE:
            raise ProtocolError(Status.INVALID, "an action does not exist")
        name, at = decode_string(data, at + 3)
        if head[0] == 2:
            actions.append(UnsetVar(Scope(head[2]), name))
            continue
        value, at = decode_typed(data, at)
        actions.append(SetVar(Scope(head[2]), name, value))
    return tuple(actions)


def _haproxy_hello(items: _Items) -> HaproxyHello:
    healthcheck = items.get(b"healthcheck")
    engine_id = items.get(b"engine-id")
    return HaproxyHello(
        versions=_string(items.get(b"supported-versions"), Status.NO_VERSION),
        max_frame_bytes=_integer(items.get(b"max-frame-size"), Status.NO_FRAME_SIZE),
        capabilities=_string(items.get(b"capabilities"), Status.NO_CAPABILITIES),
        healthcheck=healthcheck is not None and healthcheck.value is True,
        engine_id=b"" if engine_id is None else _string(engine_id, Status.INVALID),
    )


def _agent_hello(items: _Items) -> AgentHello:
    return AgentHello(
        version=_string(items.get(b"version"), Status.NO_VERSION),
        max_frame_bytes=_integer(items.get(b"max-frame-size"), Status.NO_FRAME_SIZE),
        capabilities=_string(items.get(b"capabilities"), Status.NO_CAPABILITIES),
    )


def _disconnect(items: _Items, from_agent: bool) -> Disconnect:
    status = _integer(items.get(b"status-code"), Status.INVALID)
    return Disconnect(status, _string(items.get(b"message"), Status.INVALID), from_agent)


def _string(typed: Typed | None, missing: Status) -> bytes:
    if typed is None or typed.kind is not Kind.STRING or not isinstance(typed.value, bytes):
        raise ProtocolError(missing, "a string that the frame must have is not there")
    return typed.value


def _integer(typed: Typed | None, missing: Status) -> int:
    if typed is None or typed.kind is not Kind.UINT32 or not isinstance(typed.value, int):
        raise ProtocolError(missing, "an unsigned number that the frame must have is not there")
    return typed.value
