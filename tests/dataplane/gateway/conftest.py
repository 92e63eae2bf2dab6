"""A gateway with its replicas and its router peer, all real processes or sockets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dataplane.gateway.applier import Gateway
from dataplane.launchers import LocalLauncher
from dataplane.pb import topology_pb2
from dataplane.state_dir import StateDir
from tests import ports
from tests.dataplane.gateway import orders
from tests.dataplane.gateway.replica import Replica
from tests.dataplane.gateway.spop_peer import Answer, Question, SpopPeer

DEADLINE_S = 10.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds, or fail."""
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < end, what
        await asyncio.sleep(0.01)


class Lab:
    """One gateway on 127.0.0.1; ``decide`` may be replaced at any time."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.port = ports.lease()[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.launcher = LocalLauncher(state)
        self.gateway = Gateway(state, self.launcher)
        self.replicas: dict[str, Replica] = {}
        self.decide: Callable[[str, Question], Answer] = lambda message, question: {}
        self.router = SpopPeer(state.spop_socket, self._decide)
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=20)
        self.log: list[str] = []
        self._log_socket: socket.socket | None = None

    def _decide(self, message: str, question: Question) -> Answer:
        return self.decide(message, question)

    async def start_log(self) -> None:
        self._log_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._log_socket.setblocking(False)
        self._log_socket.bind(str(self.state.log_socket))
        asyncio.get_running_loop().add_reader(self._log_socket, self._read_log)

    def _read_log(self) -> None:
        assert self._log_socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                self.log.append(self._log_socket.recv(4096).decode())

    async def add_replicas(self, pool: str, count: int, first: int = 0) -> list[topology_pb2.Replica]:
        made = []
        for index in range(first, first + count):
            port = ports.lease()[0]
            one = orders.replica(pool, index, port)
            self.replicas[one.server] = Replica(one.server, port)
            await self.replicas[one.server].start()
            made.append(one)
        return made

    async def apply(
        self, models: Iterable[topology_pb2.Model], replicas: Iterable[topology_pb2.Replica], **extra: Any
    ) -> None:
        await self.gateway.apply(orders.order(self.port, models, replicas, **extra))

    async def router_up(self) -> None:
        """Wait until HAProxy asks the router."""
        await self.router.start()
        loop = asyncio.get_running_loop()
        end = loop.time() + DEADLINE_S
        while loop.time() < end:
            await self.post({"model": "m", "messages": []})
            if self.router.asked:
                self.router.asked.clear()
                return
            await asyncio.sleep(0.05)
        raise AssertionError("HAProxy never asked the router")

    async def post(self, body: Any = None, path: str = "/v1/chat/completions", **extra: Any) -> httpx2.Response:
        if body is not None:
            extra["json"] = body
        return await self.client.post(path, **extra)

    async def close(self) -> None:
        await self.client.aclose()
        await self.gateway.stop()
        for replica in self.replicas.values():
            await replica.stop()
        if self.router.listening:
            await self.router.stop()
        if self._log_socket is not None:
            asyncio.get_running_loop().remove_reader(self._log_socket)
            self._log_socket.close()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="sg"))
    state = StateDir(folder)
    state.create()
    made = Lab(state)
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(folder, ignore_errors=True)
