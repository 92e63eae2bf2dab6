"""What stands before every page: who may ask, how, and what a browser may do with the answer."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Nothing but our own script and style sheet; no frame, no form, no other origin.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
#: A Host header: name, IPv4 address or IPv6 address in brackets, and a port perhaps.
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9.-]{1,253}))(?::[0-9]{1,5})?")


class Guard:
    """ASGI middleware: GET only, from a Host that no attacker's DNS can point here, strict headers on every answer.

    DNS rebinding needs a name: the browser sends the attacker's name as Host though it has connected to us. An address
    or ``localhost`` cannot be rebound, so those pass, and the name that the page was configured with.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._allowed(hosts[0]):
            await _refuse(send_guarded, 421, "host_not_allowed", "This page is not served under this host name.")
        elif scope["method"] != "GET":
            await _refuse(send_guarded, 405, "method_not_allowed", "Only GET is allowed.", (b"allow", b"GET"))
        else:
            await self._app(scope, receive, send_guarded)

    def _allowed(self, raw: bytes) -> bool:
        found = _HOST.fullmatch(raw.decode("latin-1").lower())
        if found is None:
            return False
        name = found["v6"] or found["name"]
        if name in {"localhost", self._host}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def _refuse(send: Send, status: int, code: str, message: str, *more: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
