"""A replica for tests: HTTP/1.1 over asyncio, it tells what it got and streams as slowly as it is asked to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int
    body: bytes = field(repr=False, default=b"")


class Replica:
    """Answers every path. ``crash_next``: closes that many connections after the whole request, with no answer.

    A request with the header ``x-events: N`` gets N numbered events, ``x-gap-ms`` apart.
    """

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.received: list[Received] = []
        self.crash_next = 0
        self.keep_bodies = True
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024, limit=1 << 20)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers: dict[str, str] = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        size, body = 0, b""
        if "chunked" in headers.get("transfer-encoding", ""):
            while length := int(await reader.readline(), 16):
                chunk = await reader.readexactly(length + 2)
                size += length
                body += chunk[:-2] if self.keep_bodies else b""
            await reader.readline()
        else:
            left = int(headers.get("content-length", "0"))
            size = left
            while left:
                part = await reader.read(min(left, 1 << 20))
                if not part:
                    return False
                left -= len(part)
                body += part if self.keep_bodies else b""
        if path == "/health":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return True
        self.received.append(Received(method, path, headers, size, body))
        if self.crash_next:
            self.crash_next -= 1
            return False
        events = int(headers.get("x-events", "0"))
        if events:
            await self._stream(writer, events, int(headers.get("x-gap-ms", "1")) / 1000)
            return True
        answer = json.dumps({"replica": self.name, "bytes": size}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer))
        writer.write(answer)
        await writer.drain()
        return True

    async def _stream(self, writer: asyncio.StreamWriter, events: int, gap_s: float) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(events):
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(gap_s)
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
