from __future__ import annotations

import socket

from httpx2 import AsyncClient

from controlplane.admin.page_server import PageServer
from tests.controlplane.controller.conftest import Bench
from tests.ports import lease


async def test_it_serves_on_its_address_only_and_ends(bench: Bench) -> None:
    controller = await bench.start()
    (port,) = lease()
    server = PageServer(controller, bench.state, f"127.0.0.1:{port}")
    await server.start()
    async with AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/healthz")
    assert answer.status_code == 200
    assert "server" not in answer.headers
    await server.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_taken_address_costs_the_page_only(bench: Bench) -> None:
    controller = await bench.start()
    (port,) = lease()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        server = PageServer(controller, bench.state, f"127.0.0.1:{port}")
        await server.start()
    assert [e.reason for e in controller.events.newest(5)] == ["page_not_served"]
    await bench.apply(1)
    await server.stop()
