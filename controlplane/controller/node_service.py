"""NodeService: reports come in, whole orders go out, on one stream for each node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from controlplane.controller.nodes import Link, NodeBoard
from controlplane.errors import InvalidRequest
from dataplane.names import LABEL, checked
from dataplane.pb import node_pb2, node_pb2_grpc


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """Ties each agent's stream to its place on the board."""

    def __init__(self, nodes: NodeBoard) -> None:
        self._nodes = nodes

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[node_pb2.NodeReport], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[node_pb2.NodeOrders]:
        """See the service. The first report names the node; a later one that names another ends the stream."""
        reports = aiter(request_iterator)
        try:
            first = await anext(reports)
        except StopAsyncIteration:
            return
        name = checked(LABEL, first.node, "node")
        link = self._nodes.connect(name)
        self._nodes.hear(name, first)
        listening = asyncio.create_task(self._listen(name, reports, link))
        try:
            async for orders in link.orders():
                yield orders
            if listening.done():
                listening.result()
        finally:
            self._nodes.disconnect(name, link)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, name: str, reports: AsyncIterator[node_pb2.NodeReport], link: Link) -> None:
        try:
            async for report in reports:
                if link.closed:
                    return
                if report.node != name:
                    raise InvalidRequest(f"this stream is of node {name}, not of {report.node[:80]!r}")
                self._nodes.hear(name, report)
        finally:
            link.close()
