"""A SPOP agent that is just enough for tests: it answers with what a function says and keeps what it was asked."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

#: None: the variable is unset.
Answer = dict[str, str | int | None]
Question = dict[str, bytes]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 240:
        return value, at
    shift = 4
    while True:
        byte = data[at]
        at += 1
        value += byte << shift
        shift += 7
        if byte < 128:
            return value, at


def _encoded(value: int) -> bytes:
    if value < 240:
        return bytes((value,))
    out = bytearray(((value & 15) | 240,))
    value = (value - 240) >> 4
    while value >= 128:
        out.append((value & 127) | 128)
        value = (value - 128) >> 7
    out.append(value)
    return bytes(out)


def _text(value: bytes) -> bytes:
    return _encoded(len(value)) + value


def _typed(data: bytes, at: int) -> tuple[bytes, int]:
    kind = data[at] & 15
    at += 1
    if kind in (0, 1):
        return b"", at
    if kind < 6:
        value, at = _varint(data, at)
        return str(value).encode(), at
    if kind in (6, 7):
        size = 4 if kind == 6 else 16
        return data[at : at + size], at + size
    size, at = _varint(data, at)
    return data[at : at + size], at + size


def _frame(kind: int, stream: int, frame: int, payload: bytes) -> bytes:
    body = bytes((kind, 0, 0, 0, 1)) + _encoded(stream) + _encoded(frame) + payload
    return struct.pack(">I", len(body)) + body


def _set(name: str, value: str | int | None) -> bytes:
    if value is None:
        return b"\x02\x02\x02" + _text(name.encode())  # action UNSET-VAR with 2 arguments
    # Action SET-VAR with 3 arguments, scope transaction.
    typed = b"\x04" + _encoded(value) if isinstance(value, int) else b"\x08" + _text(value.encode())
    return b"\x01\x03\x02" + _text(name.encode()) + typed


class SpopPeer:
    """Listens on a unix socket; ``decide`` gets (message, arguments) and returns variables."""

    def __init__(self, socket: Path, decide: Callable[[str, Question], Answer]) -> None:
        self.socket = socket
        self.decide = decide
        self.asked: list[tuple[str, Question]] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self.socket), backlog=1024)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        self._server = None
        self.socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                size = struct.unpack(">I", await reader.readexactly(4))[0]
                answer = self._answer(await reader.readexactly(size))
                if answer:
                    writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, data: bytes) -> bytes:
        kind = data[0]
        stream, at = _varint(data, 5)
        frame, at = _varint(data, at)
        if kind == 1:
            offered: dict[bytes, bytes] = {}
            while at < len(data):
                size, at = _varint(data, at)
                key = data[at : at + size]
                offered[key], at = _typed(data, at + size)
            limit = int(offered[b"max-frame-size"])
            hello = _text(b"version") + b"\x08" + _text(b"2.0") + _text(b"max-frame-size") + b"\x03" + _encoded(limit)
            return _frame(101, 0, 0, hello + _text(b"capabilities") + b"\x08" + _text(b"pipelining"))
        if kind != 3:
            return b""
        variables: Answer = {}
        while at < len(data):
            size, at = _varint(data, at)
            message = data[at : at + size].decode()
            at += size
            count = data[at]
            at += 1
            arguments: Question = {}
            for _ in range(count):
                size, at = _varint(data, at)
                name = data[at : at + size].decode()
                arguments[name], at = _typed(data, at + size)
            self.asked.append((message, arguments))
            variables |= self.decide(message, arguments)
        return _frame(103, stream, frame, b"".join(_set(name, value) for name, value in variables.items()))
