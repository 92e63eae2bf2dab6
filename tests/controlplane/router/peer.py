"""HAProxy's half of a SPOP connection, spoken by a test."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from controlplane.router.spop.frames import (
    Ack,
    AgentHello,
    Frame,
    HaproxyHello,
    Message,
    Notify,
    SetVar,
    decode,
    encode,
)
from controlplane.router.spop.values import Kind, Typed

HELLO = encode(HaproxyHello(b"2.0", 1 << 20, b"pipelining"))


def question(stream_id: int, request_id: bytes, record: bytes, body: bytes | None = None) -> bytes:
    """Return a `route` or `full` frame."""
    arguments = [(b"id", Typed.string(request_id)), (b"f", Typed.string(record)), (b"tenant", Typed.string(b""))]
    if body is not None:
        arguments.append((b"body", Typed.string(body)))
    name = b"route" if body is None else b"full"
    return encode(Notify(stream_id, 1, (Message(name, tuple(arguments)),)))


_open: set[Peer] = set()


async def close_all() -> None:
    """Close what a test that failed left open."""
    for peer in tuple(_open):
        await peer.close()


def whole(stream_id: int, request_id: bytes, body: bytes) -> bytes:
    """Return a `whole` frame, its arguments as HAProxy sends them."""
    arguments = (
        (b"id", Typed.string(request_id)),
        (b"kind", Typed(Kind.INT64, 1)),
        (b"tenant", Typed(Kind.NULL, None)),
        (b"size", Typed(Kind.INT64, len(body))),
        (b"model", Typed(Kind.NULL, None)),
        (b"h.x-session-id", Typed(Kind.NULL, None)),
        (b"body", Typed(Kind.BINARY, body)),
    )
    return encode(Notify(stream_id, 1, (Message(b"whole", arguments),)))


class Peer:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        _open.add(self)

    @classmethod
    async def connect(cls, path: Path) -> Peer:
        """Connect and say nothing."""
        return cls(*await asyncio.open_unix_connection(str(path)))

    @classmethod
    async def ready(cls, path: Path) -> Peer:
        """Connect and shake hands."""
        peer = await cls.connect(path)
        try:
            peer.writer.write(HELLO)
            assert isinstance(await peer.frame(), AgentHello)
        except BaseException:
            await peer.close()
            raise
        return peer

    async def frame(self) -> Frame:
        """Read one frame."""
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return decode(await self.reader.readexactly(size))

    async def answer(self) -> tuple[int, dict[str, bytes]]:
        """Read one ACK; return the stream and the variables."""
        ack = await self.frame()
        assert isinstance(ack, Ack)
        variables: dict[str, bytes] = {}
        for action in ack.actions:
            assert isinstance(action, SetVar)
            assert isinstance(action.value.value, bytes)
            variables[action.name.decode()] = action.value.value
        return ack.stream_id, variables

    async def ask(self, request_id: bytes, record: bytes, body: bytes | None = None) -> dict[str, bytes]:
        """Ask one question; return the variables of the answer."""
        self.writer.write(question(300, request_id, record, body))
        stream_id, variables = await self.answer()
        assert stream_id == 300
        return variables

    async def closed(self) -> bytes:
        """Return what still comes until the other side closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection and wait until the loop has let go of it."""
        _open.discard(self)
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()
