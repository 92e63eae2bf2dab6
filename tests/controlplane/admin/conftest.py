from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from httpx2 import ASGITransport, AsyncClient

from controlplane.admin.app import make_app
from controlplane.admin.router_feed import RouterFeed
from tests.controlplane.admin.router import Router, serve
from tests.controlplane.controller.conftest import Bench, bench, state

__all__ = ["bench", "state"]


@pytest.fixture
async def router(bench: Bench) -> AsyncIterator[Router]:
    made = Router()
    server = await serve(made, bench.state.router_socket)
    yield made
    await server.stop(0)


@pytest.fixture
async def feed(bench: Bench) -> AsyncIterator[RouterFeed]:
    made = RouterFeed(bench.state.router_socket)
    yield made
    await made.close()


@pytest.fixture
async def page(bench: Bench, feed: RouterFeed) -> AsyncIterator[AsyncClient]:
    controller = await bench.start()
    transport = ASGITransport(app=make_app(controller, feed, "127.0.0.1"))
    async with AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
        yield client
