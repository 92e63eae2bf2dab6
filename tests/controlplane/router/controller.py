"""A controller's TopologyService, as far as a router sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from dataplane.pb.topology_pb2 import Topology, WatchTopologyRequest
from dataplane.pb.topology_pb2_grpc import TopologyServiceServicer, add_TopologyServiceServicer_to_server
from dataplane.state_dir import StateDir


class Controller(TopologyServiceServicer):
    """Publishes what it is told, as proto/slipstream/v1/topology.proto says."""

    def __init__(self, newest: Topology | None) -> None:
        self.newest = newest
        self.changed = asyncio.Condition()
        self.requests: list[WatchTopologyRequest] = []

    async def publish(self, topology: Topology) -> None:
        """Send a snapshot to every watcher."""
        async with self.changed:
            self.newest = topology
            self.changed.notify_all()

    async def Watch(
        self,
        request: WatchTopologyRequest,
        context: grpc.aio.ServicerContext[WatchTopologyRequest, Topology],
    ) -> AsyncIterator[Topology]:
        self.requests.append(request)
        after = request.after_number
        sent: Topology | None = None
        async with self.changed:
            while True:
                newest = self.newest
                if newest is not None and newest is not sent and newest.number > after:
                    sent = newest
                    yield newest
                await self.changed.wait()


@asynccontextmanager
async def serving(state: StateDir, newest: Topology | None) -> AsyncIterator[Controller]:
    """Serve on the state directory's controller socket."""
    controller = Controller(newest)
    server = grpc.aio.server()
    add_TopologyServiceServicer_to_server(controller, server)
    server.add_insecure_port(f"unix:{state.controller_socket}")
    await server.start()
    try:
        yield controller
    finally:
        await server.stop(0)
