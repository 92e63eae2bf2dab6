"""One SPOP connection, the agent's side, without I/O.

Bytes go in through ``receive``, events come out; what is to be sent waits in ``data_to_send``. What a frame means
depends on (state, frame type) alone, and one table holds every pair that is allowed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from typing import ClassVar, Generic, TypeAlias, TypeVar

from controlplane.router.spop.errors import ProtocolError, Status
from controlplane.router.spop.frames import (
    MIN_FRAME_BYTES,
    AgentHello,
    Disconnect,
    Frame,
    HaproxyHello,
    Notify,
    Unknown,
    decode,
    encode,
)

VERSION = b"2.0"
#: HAProxy 3.1 dropped `async` and `fragmentation`, and 2.8 uses what an agent announces: neither is ever announced.
CAPABILITIES = b"pipelining"
#: The `full` message carries 1,000,000 bytes of body; HAProxy offers its buffer, 1 MiB by default, less four bytes.
MAX_FRAME_BYTES = 1 << 20
#: Every peer must take frames of this size (doc/SPOE.txt, 3.2).
SMALLEST_MAX_FRAME_BYTES = 256

_LENGTH = struct.Struct(">I")
_LENGTH_BYTES = 4

Quick = TypeVar("Quick")


class State(Enum):
    """Where the connection stands."""

    WAITING = "waiting"  # for HAPROXY-HELLO
    READY = "ready"
    CLOSED = "closed"  # send what is queued, then close; everything received is ignored


Shortcut: TypeAlias = Callable[[bytes | bytearray, int, int], Quick | None]


def no_shortcut(_data: bytes | bytearray, _start: int, _stop: int) -> None:
    """Leave every frame to the general decoder."""


class AgentConnection(Generic[Quick]):
    """The agent's half of one connection.

    ``shortcut(data, start, stop)`` is tried on each frame first once the handshake is done: what it returns, unless
    None, is the event. It must accept only well-formed NOTIFY frames with the FIN flag and must not raise. ``data`` is
    what ``receive`` was given, or for a frame that came in pieces the bytearray in which it was collected.

    Memory: an unfinished frame is kept as it arrived, so a connection holds at most twice what its peer sent and never
    more than two frames of the negotiated size.
    """

    def __init__(self, shortcut: Shortcut[Quick], max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.state = State.WAITING
        self.max_frame_bytes = max_frame_bytes
        self.hello: HaproxyHello | None = None
        self._shortcut = shortcut
        self._pending = bytearray()
        self._needed = 0
        self._to_send: list[bytes] = []

    @property
    def pending_bytes(self) -> int:
        """Bytes of the frame that has begun and is not whole."""
        return len(self._pending)

    @property
    def has_data_to_send(self) -> bool:
        """Whether ``data_to_send`` has something."""
        return bool(self._to_send)

    def data_to_send(self) -> bytes:
        """Return what the handshake or a disconnection left to send; each handshake answer is one piece."""
        data = b"".join(self._to_send)
        self._to_send.clear()
        return data

    def receive(self, data: bytes | bytearray, size: int = -1) -> list[Notify | Quick]:
        """Take the first ``size`` bytes (-1: all) and return the questions that they completed.

        Nothing of a whole frame is copied: the shortcut's event may look into ``data``, so it is to be answered before
        ``data`` changes. Raises ProtocolError on the first malformed frame; the AGENT-DISCONNECT with its status is
        then queued, the state is CLOSED and whatever else came with it is dropped.
        """
        if self.state is State.CLOSED:
            return []
        if size < 0:
            size = len(data)
        if self._pending:
            self._pending += memoryview(data)[:size]
            size = len(self._pending)
            if size < self._needed:
                return []
            data = self._pending
            self._pending = bytearray()
        try:
            return self._frames(data, size)
        except ProtocolError as error:
            self.close(error.status, error.message)
            raise

    def close(self, status: Status, message: str) -> None:
        """Queue an AGENT-DISCONNECT and ignore everything from now on."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._pending = bytearray()
        self._to_send.append(encode(Disconnect(status, message.encode(), from_agent=True)))

    def _frames(self, data: bytes | bytearray, end: int) -> list[Notify | Quick]:
        events: list[Notify | Quick] = []
        at, needed = 0, _LENGTH_BYTES
        shortcut = self._shortcut if self.state is State.READY else no_shortcut
        while end - at >= _LENGTH_BYTES:
            start = at + _LENGTH_BYTES
            size = _LENGTH.unpack_from(data, at)[0]
            if size > self.max_frame_bytes:
                raise ProtocolError(Status.TOO_BIG, f"a frame is larger than {self.max_frame_bytes} bytes")
            if size < MIN_FRAME_BYTES:
                raise ProtocolError(Status.INVALID, "a frame is shorter than its head")
            stop = start + size
            if stop > end:
                needed = _LENGTH_BYTES + size
                break
            event: Notify | Quick | None = shortcut(data, start, stop)
            if event is None:
                event = self._dispatch(decode(bytes(data[start:stop])))
                if self.state is State.CLOSED:
                    return events
                shortcut = self._shortcut
            if event is not None:
                events.append(event)
            at = stop
        if at < end:
            self._pending += memoryview(data)[at:end]
            self._needed = needed
        return events

    def _dispatch(self, frame: Frame) -> Notify | None:
        handler = self._HANDLERS.get((self.state, type(frame)))
        if handler is None:
            raise ProtocolError(Status.INVALID, f"{type(frame).__name__} is not allowed while {self.state.value}")
        return handler(self, frame)

    def _accept(self, frame: Frame) -> None:
        assert isinstance(frame, HaproxyHello)
        if not any(version.strip(b" ").startswith(b"2.") for version in frame.versions.split(b",")):
            raise ProtocolError(Status.BAD_VERSION, "only SPOP 2.0 is supported")
        if frame.max_frame_bytes < SMALLEST_MAX_FRAME_BYTES:
            raise ProtocolError(Status.BAD_FRAME_SIZE, f"frames of {SMALLEST_MAX_FRAME_BYTES} bytes must be possible")
        self.max_frame_bytes = min(self.max_frame_bytes, frame.max_frame_bytes)
        self.hello = frame
        self._to_send.append(encode(AgentHello(VERSION, self.max_frame_bytes, CAPABILITIES)))
        self.state = State.CLOSED if frame.healthcheck else State.READY

    def _ask(self, frame: Frame) -> Notify:
        assert isinstance(frame, Notify)
        return frame

    def _leave(self, frame: Frame) -> None:
        assert isinstance(frame, Disconnect)
        if frame.from_agent:
            raise ProtocolError(Status.INVALID, "an agent's frame came from the peer")
        self.close(Status.NORMAL, "")

    def _skip(self, _frame: Frame) -> None:
        """Leave out a frame of a later protocol version."""

    _HANDLERS: ClassVar[dict[tuple[State, type], Callable[[AgentConnection[Quick], Frame], Notify | None]]] = {
        (State.WAITING, HaproxyHello): _accept,
        (State.WAITING, Disconnect): _leave,
        (State.READY, Notify): _ask,
        (State.READY, Disconnect): _leave,
        (State.READY, Unknown): _skip,
    }
