"""Reports of engines on the way to routers elsewhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from dataplane.node.report_relay import MAX_PENDING, ReportRelay
from dataplane.pb import routing_pb2, routing_pb2_grpc

DEADLINE_S = 20.0


class Router(routing_pb2_grpc.RoutingServiceServicer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    async def Route(self, request: Any, context: Any) -> Any: ...

    async def Explain(self, request: Any, context: Any) -> Any: ...

    def WatchReceipts(self, request: Any, context: Any) -> Any: ...

    async def Status(self, request: Any, context: Any) -> Any: ...

    async def Report(self, request_iterator: Any, context: Any) -> routing_pb2.ReportResponse:
        async for request in request_iterator:
            assert request.datagrams
            self.datagrams += request.datagrams
        return routing_pb2.ReportResponse()


@asynccontextmanager
async def serving(router: Router, path: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(router, server)  # type: ignore[no-untyped-call,unused-ignore]
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def relaying(path: Path, *targets: Path) -> AsyncIterator[socket.socket]:
    task = asyncio.create_task(ReportRelay(path, [f"unix:{target}" for target in targets]).run())
    await until(lambda: path.exists() or task.done())
    engine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    engine.connect(str(path))
    try:
        yield engine
    finally:
        engine.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not path.exists()


async def test_every_router_hears_everything_in_order(tmp_path: Path) -> None:
    routers = [Router(), Router()]
    path = tmp_path / "reports.sock"
    sent = [b"S a.g1 0\nF %d" % i for i in range(200)]
    async with (
        serving(routers[0], tmp_path / "0.sock"),
        serving(routers[1], tmp_path / "1.sock"),
        relaying(path, tmp_path / "0.sock", tmp_path / "1.sock") as engine,
    ):
        assert path.stat().st_mode & 0o777 == 0o600
        for datagram in sent:
            await asyncio.get_running_loop().run_in_executor(None, engine.send, datagram)
        await until(lambda: all(router.datagrams == sent for router in routers))


async def test_a_router_that_comes_late_hears_the_newest(tmp_path: Path) -> None:
    router, target = Router(), tmp_path / "0.sock"
    sent = [b"%d" % i for i in range(MAX_PENDING + 20)]
    async with relaying(tmp_path / "reports.sock", target) as engine:
        for datagram in sent:
            await asyncio.get_running_loop().run_in_executor(None, engine.send, datagram)
        async with serving(router, target):
            engine.send(b"after")
            await until(lambda: router.datagrams and router.datagrams[-1] == b"after")
    assert len(router.datagrams) <= MAX_PENDING + 1
    assert sent[-1] in router.datagrams
