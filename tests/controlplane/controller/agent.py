"""A node agent for tests: a real gRPC client with engines that exist only as reports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from grpc import aio

from dataplane.names import server_name
from dataplane.pb import node_pb2, node_pb2_grpc, topology_pb2

READY = topology_pb2.REPLICA_STATE_READY
STARTING = topology_pb2.REPLICA_STATE_STARTING
STOPPING = topology_pb2.REPLICA_STATE_STOPPING
FAILED = topology_pb2.REPLICA_STATE_FAILED
DRAINING = topology_pb2.REPLICA_STATE_DRAINING
PENDING = topology_pb2.REPLICA_STATE_PENDING


class Agent:
    """Obeys its orders at once. ``streams`` is what HAProxy would count by server name.

    ``started`` and ``stopped`` list, in order, the incarnations that a real agent would have started and ended.
    """

    def __init__(self, socket: Path, name: str = "local", *, obedient: bool = True, first_state: int = READY) -> None:
        self.name = name
        self.engines: dict[str, node_pb2.EngineReport] = {}
        self.orders = node_pb2.NodeOrders()
        self.streams: dict[str, int] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.taken: list[node_pb2.NodeOrders] = []
        self.gateway_error = ""
        self._socket = socket
        self.obedient = obedient
        self._first_state = first_state
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def connect(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def disconnect(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def report(self) -> None:
        self._changed.set()

    def set_state(self, replica: str, state: int, **fields: object) -> None:
        engine = self.engines[replica]
        engine.state = state  # type: ignore[assignment]
        for field, value in fields.items():
            setattr(engine, field, value)
        self.report()

    def crash(self, replica: str) -> None:
        self.set_state(replica, FAILED, exited=True, exit_code=-9, pid=0, detail="ended by signal 9")
        self.engines[replica].last_log_lines[:] = ["boom"]

    async def _run(self) -> None:
        options = [(f"grpc.{name}_reconnect_backoff_ms", 100) for name in ("initial", "min", "max")]
        async with aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            while True:
                with contextlib.suppress(aio.AioRpcError):
                    call = stub.Connect(self._reports(), wait_for_ready=True)
                    async for orders in call:
                        self._take(orders)
                await asyncio.sleep(0.02)

    async def _reports(self) -> AsyncIterator[node_pb2.NodeReport]:
        while True:
            self._changed.clear()
            yield self._whole()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._changed.wait()

    def _whole(self) -> node_pb2.NodeReport:
        report = node_pb2.NodeReport(
            node=self.name,
            address="127.0.0.1",
            orders_number=self.orders.number,
            engines=self.engines.values(),
            cpu_count=2,
            memory_bytes=1 << 30,
            pid=4242,
        )
        if self.orders.HasField("gateway"):
            gateway = node_pb2.GatewayReport(
                gateway=self.orders.gateway.gateway.name,
                topology_number=self.orders.gateway.topology.number,
                pid=4343,
                ready=True,
                error=self.gateway_error,
            )
            for replica in self.orders.gateway.topology.replicas:
                gateway.servers.add(
                    pool=replica.pool,
                    server=replica.server,
                    current_streams=self.streams.get(replica.server, 0),
                    status="UP",
                )
            report.gateway.CopyFrom(gateway)
        return report

    def _take(self, orders: node_pb2.NodeOrders) -> None:
        self.orders = orders
        self.taken.append(orders)
        if self.obedient:
            self.obey()
        self.report()

    def obey(self) -> None:
        ordered = {order.launch.replica: order.launch for order in self.orders.engines}
        for replica in list(self.engines):
            engine = self.engines[replica]
            if replica not in ordered or ordered[replica].generation != engine.generation:
                self.stopped.append(server_name(replica, engine.generation))
                del self.engines[replica]
        for replica, launch in ordered.items():
            if replica not in self.engines:
                self.started.append(server_name(replica, launch.generation))
                self.engines[replica] = node_pb2.EngineReport(
                    replica=replica,
                    generation=launch.generation,
                    state=self._first_state,  # type: ignore[arg-type]
                    pid=1000 + launch.generation,
                )
        self.report()


async def until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Wait until the condition holds; fail with ``what`` after ``seconds``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)
