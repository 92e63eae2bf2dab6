"""A controller of a few lines: a real gRPC server on the state directory's socket that gives orders, keeps reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from dataplane.pb import gateway_pb2, node_pb2, node_pb2_grpc, topology_pb2
from dataplane.state_dir import StateDir

DEADLINE_S = 30.0


class Controller(node_pb2_grpc.NodeServiceServicer):
    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._server: grpc.aio.Server | None = None
        self._changed = asyncio.Condition()
        self.orders = node_pb2.NodeOrders()
        self.reports: list[node_pb2.NodeReport] = []
        self.connections = 0

    async def start(self) -> None:
        self._state.controller_socket.unlink(missing_ok=True)
        self._server = grpc.aio.server()
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self._state.controller_socket}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def Connect(
        self, request_iterator: AsyncIterator[node_pb2.NodeReport], context: object
    ) -> AsyncIterator[node_pb2.NodeOrders]:
        self.connections += 1
        hearing = asyncio.create_task(self._hear(request_iterator))
        sent = -1
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self.orders.number != sent)  # noqa: B023
                sent = self.orders.number
                yield self.orders
        finally:
            hearing.cancel()

    async def order(self, *engines: node_pb2.EngineOrder, gateway: gateway_pb2.GatewayOrder | None = None) -> int:
        """Give new orders; return their number."""
        orders = node_pb2.NodeOrders(number=self.orders.number + 1, engines=engines)
        if gateway is not None:
            orders.gateway.CopyFrom(gateway)
        self.orders = orders
        async with self._changed:
            self._changed.notify_all()
        return orders.number

    async def until(self, **states: str) -> dict[str, node_pb2.EngineReport]:
        """Wait for a report on these orders in which exactly these replicas (``a_0="READY"``) are in these states."""
        wanted = {
            name.replace("_", "-"): topology_pb2.ReplicaState.Value(f"REPLICA_STATE_{s}") for name, s in states.items()
        }

        def fits(report: node_pb2.NodeReport) -> bool:
            told = {engine.replica: engine.state for engine in report.engines}
            return report.orders_number == self.orders.number and told == wanted

        return {engine.replica: engine for engine in (await self.heard(fits)).engines}

    async def heard(self, fits: object) -> node_pb2.NodeReport:
        """Wait until the newest report fits, and return it."""
        assert callable(fits)
        async with self._changed:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._changed.wait_for(lambda: bool(self.reports) and fits(self.reports[-1]))
            except TimeoutError:
                raise AssertionError(f"the last report was {self.reports[-1:]}") from None
            return self.reports[-1]

    async def _hear(self, reports: AsyncIterator[node_pb2.NodeReport]) -> None:
        async for report in reports:
            self.reports.append(report)
            async with self._changed:
                self._changed.notify_all()
