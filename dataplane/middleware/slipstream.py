"""The middleware class that ``vllm serve --middleware`` names."""

from __future__ import annotations

import os
import re

from dataplane.middleware import accounts
from dataplane.middleware.accounts import FIRST_ERROR
from dataplane.middleware.asgi import App, Receive, Scope, Send
from dataplane.middleware.body_members import MemberWriter, grown_headers, with_members
from dataplane.middleware.cache_salt import MEMBER, SALTED_PATHS, salt
from dataplane.middleware.held_start import HeldStart
from dataplane.middleware.response_id import PIN, response_id

_RESPONSES = "/v1/responses"
#: Paths that make the engine compute a prompt: these requests have accounts.
_COMPUTED = SALTED_PATHS | {"/v1/audio/transcriptions", "/v1/audio/translations"}
#: Paths of vLLM's that drop the whole prefix cache when they succeed (an unneeded mention costs some hits).
_CLEARING = frozenset({"/reset_prefix_cache", "/sleep", "/update_weights", "/finish_weight_update"})

REQUEST_ID_HEADER = b"x-slipstream-request-id"
TENANT_HEADER = b"x-slipstream-tenant"
SALT_HEADER = b"x-slipstream-salt"
#: What vLLM's own name of a request is made of.
NAME_HEADER = b"x-request-id"

_SERVER = re.compile(r"[A-Za-z0-9._-]{1,128}")


class SlipstreamMiddleware:
    """Inside every engine that Slipstream starts.

    What its environment says (docs/contracts.md):

    - SLIPSTREAM_PIN: POST /v1/responses gives the response the id ``resp_<pin>_<32 hex>``, from which HAProxy finds
      this replica again. Without it ids stay as the engine makes them.
    - SLIPSTREAM_SERVER and SLIPSTREAM_REPORTS: the router is told of first tokens and of what each request took.
    - SLIPSTREAM_ISOLATE=1: tenants share no cached prompt; a client's own ``cache_salt`` counts for nothing.

    Every POST's response start is held until the first token (``HeldStart``). All else passes untouched. Raises
    ValueError when a variable is not what it has to be.
    """

    def __init__(self, app: App) -> None:
        pin = os.environ.get("SLIPSTREAM_PIN", "")
        if pin and PIN.fullmatch(pin) is None:
            raise ValueError("SLIPSTREAM_PIN must be eight lower-case hex digits")
        server = os.environ.get("SLIPSTREAM_SERVER", "")
        if server and _SERVER.fullmatch(server) is None:
            raise ValueError("SLIPSTREAM_SERVER must be the name of a server")
        self._app = app
        self._pin = pin
        self._isolated = os.environ.get("SLIPSTREAM_ISOLATE", "") == "1"
        self._accounts = accounts.serve(server, os.environ.get("SLIPSTREAM_REPORTS", "") if server else "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path in _COMPUTED:
            await self._computed(path, scope, receive, send)
        elif path in _CLEARING:
            await self._app(scope, receive, HeldStart(send, prelude=False, listener=_Clearing(self._accounts)))
        else:
            await self._app(scope, receive, HeldStart(send, prelude=False))

    async def _computed(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, name, tenant, signed = _headers(scope)
        members = {}
        if path == _RESPONSES and self._pin:
            members["request_id"] = name = response_id(self._pin)
        if self._isolated and path in SALTED_PATHS:
            members[MEMBER] = salt(signed, tenant)
        if members:
            writer = MemberWriter(members)
            scope = {**scope, "headers": grown_headers(scope["headers"], writer.growth)}
            receive = with_members(receive, writer)
        account = self._accounts.open(request_id, name)
        held = HeldStart(send, path == _RESPONSES, account)
        if account is None:
            await self._app(scope, receive, held)
            return
        self._accounts.application = scope.get("app")
        token = accounts.current.set(account)
        try:
            await self._app(scope, receive, held)
        finally:
            accounts.current.reset(token)
            self._accounts.close(account, answered=False)


def _headers(scope: Scope) -> tuple[bytes, str, bytes, bytes]:
    """Return the request's id, the name that it will have in vLLM, its tenant and its signed salt; empty: none."""
    request_id = name = tenant = signed = b""
    for header, value in scope["headers"]:
        if header == NAME_HEADER:
            name = value
        elif header == REQUEST_ID_HEADER:
            request_id = value
        elif header == TENANT_HEADER:
            tenant = value
        elif header == SALT_HEADER:
            signed = value
    return request_id or name, name.decode("latin-1"), tenant, signed


class _Clearing:
    """Tells that the cache is gone once the engine said so."""

    __slots__ = ("_accounts",)

    def __init__(self, book: accounts.Accounts) -> None:
        self._accounts = book

    def first_byte(self, status: int) -> None:
        """Not the end yet."""

    def last_byte(self, status: int) -> None:
        """See HeldStart."""
        if status < FIRST_ERROR:
            self._accounts.cache_cleared()
