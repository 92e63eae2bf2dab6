"""Hold the response's start until its first token, so that headers, first byte and first token are one moment.

vLLM sends the headers of a stream before it prefills. A proxy in front then takes the first byte for the first token,
and may no longer retry although nothing was said yet.
"""

from __future__ import annotations

from collections.abc import Awaitable

from dataplane.middleware.asgi import Message, Send

#: What a Responses stream says before its first token; both come at once, before the prefill.
PRELUDE = (b"event: response.created\n", b"event: response.in_progress\n")
#: A prelude repeats the request's settings and tools; a larger one is passed on rather than kept.
MAX_PRELUDE_BYTES = 1 << 20
#: In the prelude of a background response, whose client wants the id and not the tokens.
_BACKGROUND = b'"background":true'


class HeldStart:
    """One response. Called as the application's ``send``; after the first token it returns the server's own coroutine.

    ``prelude`` is true for Responses: the first events of their streams are held too, background ones excepted.
    A response that never gets a body (the client went away) never starts either, so that an error raised while it is
    held still gets the server's own error response.
    """

    __slots__ = ("_held", "_held_bytes", "_open", "_prelude", "_send")

    def __init__(self, send: Send, prelude: bool) -> None:
        self._send = send
        self._prelude = prelude
        self._held: list[Message] = []
        self._held_bytes = 0
        self._open = False

    def __call__(self, message: Message) -> Awaitable[None]:
        """Hold ``message``, or send it after all that is held."""
        if self._open:
            return self._send(message)
        return self._first(message)

    async def _first(self, message: Message) -> None:
        if self._holds(message):
            self._held.append(message)
            return
        self._open = True
        for held in self._held:
            await self._send(held)
        self._held.clear()
        await self._send(message)

    def _holds(self, message: Message) -> bool:
        kind = message["type"]
        if kind == "http.response.start":
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
