"""TopologyService: numbered snapshots for routers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from controlplane.controller.topology_board import TopologyBoard
from dataplane.pb import topology_pb2, topology_pb2_grpc


class TopologyService(topology_pb2_grpc.TopologyServiceServicer):
    """Streams the board's snapshots."""

    def __init__(self, board: TopologyBoard) -> None:
        self._board = board

    async def Watch(  # noqa: N802
        self, request: topology_pb2.WatchTopologyRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[topology_pb2.Topology]:
        """See the service."""
        async for topology in self._board.watch(request.after_number):
            yield topology
