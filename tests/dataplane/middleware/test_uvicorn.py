"""The middleware under a real uvicorn, around an application that behaves as Starlette's streams do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn

from dataplane.middleware import SlipstreamMiddleware
from dataplane.middleware.asgi import App, Receive, Scope, Send
from tests.ports import lease

DEADLINE_S = 10.0
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    port = lease()[0]
    config = uvicorn.Config(
        SlipstreamMiddleware(app), host="127.0.0.1", port=port, lifespan="off", log_level="warning", ws="none"
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await task


class Stream:
    """Sends its start at once and its first token when it is told; notes that the client went."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.prefilled = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        self.asked.set()
        watch = asyncio.create_task(self._watch(receive))
        prefill = asyncio.create_task(self.prefilled.wait())
        await asyncio.wait({watch, prefill}, return_when=asyncio.FIRST_COMPLETED)
        if not self.gone.is_set():
            for part in (b"one ", b"two ", b"three"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        for task in (watch, prefill):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


async def test_headers_come_with_the_first_token_and_the_stream_is_whole() -> None:
    app = Stream()
    async with serving(app) as port, asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await app.asked.wait()
        first = asyncio.create_task(reader.read(1))
        await asyncio.wait({first}, timeout=0.1)
        assert not first.done()
        app.prefilled.set()
        got = await first + await reader.readuntil(b"0\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200") and b"one " in got and b"three" in got
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_leaves_while_the_start_is_held_is_noticed() -> None:
    app = Stream()
    async with serving(app) as port, asyncio.timeout(DEADLINE_S):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await app.asked.wait()
        writer.close()
        await writer.wait_closed()
        await app.gone.wait()
