"""The middleware class that ``vllm serve --middleware`` names."""

from __future__ import annotations

import os

from dataplane.middleware.asgi import App, Receive, Scope, Send
from dataplane.middleware.held_start import HeldStart
from dataplane.middleware.response_id import PIN, IdWriter, grown_headers, response_id, with_response_id

_RESPONSES = "/v1/responses"


class SlipstreamMiddleware:
    """Inside every engine that Slipstream starts.

    - POST: the response's start is held until the first token (``HeldStart``).
    - POST /v1/responses: the response gets the id ``resp_<SLIPSTREAM_PIN>_<32 hex>``, from which HAProxy finds this
      replica again. Without SLIPSTREAM_PIN in the environment ids stay as the engine makes them.

    All else passes untouched. Raises ValueError when SLIPSTREAM_PIN is not eight lower-case hex digits.
    """

    def __init__(self, app: App) -> None:
        pin = os.environ.get("SLIPSTREAM_PIN", "")
        if pin and PIN.fullmatch(pin) is None:
            raise ValueError("SLIPSTREAM_PIN must be eight lower-case hex digits")
        self._app = app
        self._pin = pin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif scope["path"] == _RESPONSES:
            await self._responses(scope, receive, send)
        else:
            await self._app(scope, receive, HeldStart(send, prelude=False))

    async def _responses(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = HeldStart(send, prelude=True)
        if not self._pin:
            await self._app(scope, receive, held)
            return
        writer = IdWriter(response_id(self._pin))
        edited = {**scope, "headers": grown_headers(scope["headers"], writer.growth)}
        await self._app(edited, with_response_id(receive, writer), held)
