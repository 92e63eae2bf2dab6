"""Hold the response's start until its first token, so that headers, first byte and first token are one moment.

vLLM sends the headers of a stream before it prefills. A proxy in front then takes the first byte for the first token,
and may no longer retry although nothing was said yet.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from dataplane.middleware.asgi import Message, Send

#: What a Responses stream says before its first token; both come at once, before the prefill.
PRELUDE = (b"event: response.created\n", b"event: response.in_progress\n")
#: A prelude repeats the request's settings and tools; a larger one is passed on rather than kept.
MAX_PRELUDE_BYTES = 1 << 20
#: In the prelude of a background response, whose client wants the id and not the tokens.
_BACKGROUND = b'"background":true'


class Listener(Protocol):
    """Who is told of an answer's two moments, each before its byte leaves."""

    def first_byte(self, status: int) -> None:
        """The first part of a stream is about to leave."""

    def last_byte(self, status: int) -> None:
        """The end is about to leave."""


class HeldStart:
    """One response. Called as the application's ``send``; between the first token and the last it returns the
    server's own coroutine.

    ``prelude`` is true for Responses: the first events of their streams are held too, background ones excepted.
    A response that never gets a body (the client went away) never starts either, so that an error raised while it is
    held still gets the server's own error response.
    """

    __slots__ = ("_held", "_held_bytes", "_listener", "_open", "_prelude", "_send", "_status")

    def __init__(self, send: Send, prelude: bool, listener: Listener | None = None) -> None:
        self._send = send
        self._prelude = prelude
        self._listener = listener
        self._held: list[Message] = []
        self._held_bytes = 0
        self._open = False
        self._status = 0

    def __call__(self, message: Message) -> Awaitable[None]:
        """Hold ``message``, or send it after all that is held."""
        if self._open:
            if self._listener is not None and not message.get("more_body"):
                self._listener.last_byte(self._status)
            return self._send(message)
        return self._first(message)

    async def _first(self, message: Message) -> None:
        if self._holds(message):
            self._held.append(message)
            return
        self._open = True
        if self._listener is not None:
            if message.get("more_body"):
                self._listener.first_byte(self._status)
            else:
                self._listener.last_byte(self._status)
        for held in self._held:
            await self._send(held)
        self._held.clear()
        await self._send(message)

    def _holds(self, message: Message) -> bool:
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            return True
        if kind != "http.response.body" or not message.get("more_body", False):
            return False
        body = message.get("body", b"")
        if not body:
            return True
        if not self._prelude or not body.startswith(PRELUDE) or _BACKGROUND in body:
            return False
        self._held_bytes += len(body)
        return self._held_bytes <= MAX_PRELUDE_BYTES
