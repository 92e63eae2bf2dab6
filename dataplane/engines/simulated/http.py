"""One HTTP exchange over plain ASGI: read the request, answer with JSON or a stream, notice a client that leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec

from dataplane.engines.simulated.errors import ApiError, invalid_json, missing_body, wrong_media_type
from dataplane.middleware.asgi import Receive, Scope, Send

#: Larger than any request body that HAProxy lets through.
MAX_BODY_BYTES = 256 << 20
EVENT_STREAM = "text/event-stream; charset=utf-8"

_fast_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _encode(content: object) -> bytes:
    try:
        return _fast_encode(content)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot hold
        return json.dumps(content, separators=(",", ":")).encode()


class ClientGone(Exception):
    """The client closed its connection."""


class Exchange:
    """One request and its answer."""

    __slots__ = ("_receive", "_send", "_watch", "path", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self.started = False

    def header(self, name: bytes) -> str | None:
        """Return a request header's value; ``name`` in lower case."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None

    async def body(self) -> bytes:
        """Return the whole body. Raises ClientGone, and ApiError 413 beyond MAX_BODY_BYTES."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise ApiError(413, "Request body too large", "Request Entity Too Large")
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def json(self) -> Any:
        """Return the JSON body. Raises ApiError as vLLM does, and ClientGone."""
        media = (self.header(b"content-type") or "").split(";", 1)[0].strip().lower()
        if media != "application/json":
            raise wrong_media_type()
        body = await self.body()
        if not body:
            raise missing_body()
        try:
            return _decode(body)
        except msgspec.DecodeError:  # stricter than json, and without json's position
            try:
                return json.loads(body)
            except json.JSONDecodeError as error:
                raise invalid_json(error) from error
            except UnicodeDecodeError as error:
                raise ApiError(400, "There was an error parsing the body", "Bad Request") from error

    async def reply(self, content: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Answer with JSON."""
        await self.reply_bytes(_encode(content), b"application/json", status, headers)

    async def reply_bytes(
        self, body: bytes, media: bytes = b"", status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Answer with bytes."""
        self.started = True
        fields = [*headers, (b"content-length", b"%d" % len(body))]
        if media:
            fields.append((b"content-type", media))
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        """Send the headers of an event stream."""
        self.started = True
        fields = [(b"content-type", EVENT_STREAM.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": fields})

    async def chunk(self, data: bytes, more: bool = True) -> None:
        """Send a piece of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def on_gone(self, call: Callable[[], None]) -> None:
        """Call once when the client leaves before the answer is complete; ``unwatch`` ends that."""

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            call()

        self._watch = asyncio.get_running_loop().create_task(watch())

    def unwatch(self) -> None:
        """Stop watching for the client."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def encode(content: object) -> bytes:
    """Return compact JSON, UTF-8."""
    return _encode(content)


def quoted(text: str) -> str:
    """Return ``text`` as a JSON string."""
    return _encode(text).decode()
