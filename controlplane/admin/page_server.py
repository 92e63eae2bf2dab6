"""The page's HTTP server, inside the controller's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn

from controlplane.admin.app import make_app
from controlplane.admin.router_feed import RouterFeed
from controlplane.controller.process import Controller
from controlplane.spec.fields import split_address
from dataplane.state_dir import StateDir

#: Connections at once: some viewers and scrapers.
MAX_CONNECTIONS = 64
#: Seconds that a kept connection may be silent.
KEEP_ALIVE_S = 15
#: Seconds that running answers get when the controller ends.
STOP_GRACE_S = 1
#: Seconds between two ticks of the server.
TICK_S = 1.0

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        """Tick once a second, for the Date header; the ten times of the base class cost more than an idle page."""
        while not self.ending.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the controller, which ends this server itself."""
        yield


class PageServer:
    """Serves the page on one TCP address. Raises ValueError for an address that is none."""

    def __init__(self, controller: Controller, state: StateDir, address: str) -> None:
        self._host, self._port = split_address(address)
        self._controller = controller
        self._feed = RouterFeed(state.router_socket)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. An address that is taken costs the page only: the controller runs on and says so."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            text = f"no page on {self._host}:{self._port}: {error.strerror}"
            _log.error("%s", text)
            self._controller.events.add("controller", "page_not_served", text)
            return
        app = make_app(self._controller, self._feed, self._host)
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_GRACE_S,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        """Stop listening."""
        await self._feed.close()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            self._server.ending.set()
            await self._serving
