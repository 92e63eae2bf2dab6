"""A router for tests: a real gRPC server that tells what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc import aio

from dataplane.pb import routing_pb2, routing_pb2_grpc


class Router(routing_pb2_grpc.RoutingServiceServicer):
    def __init__(self) -> None:
        self.status = routing_pb2.RouterStatusResponse(topology_number=1)
        self.receipts: asyncio.Queue[routing_pb2.Receipt] = asyncio.Queue()
        self.told: dict[str, routing_pb2.Receipt] = {}
        self.watchers = 0
        self.asked = 0

    def decide(self, receipt: routing_pb2.Receipt) -> None:
        self.told[receipt.request_id] = receipt
        self.receipts.put_nowait(receipt)

    async def Status(self, request: routing_pb2.RouterStatusRequest, context: Any) -> routing_pb2.RouterStatusResponse:
        self.asked += 1
        return self.status

    async def Explain(self, request: routing_pb2.ExplainRequest, context: Any) -> routing_pb2.Receipt:
        if request.request_id not in self.told:
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return self.told[request.request_id]

    async def WatchReceipts(
        self, request: routing_pb2.WatchReceiptsRequest, context: Any
    ) -> AsyncIterator[routing_pb2.WatchReceiptsResponse]:
        self.watchers += 1
        try:
            while True:
                yield routing_pb2.WatchReceiptsResponse(receipts=[await self.receipts.get()], skipped=2)
        finally:
            self.watchers -= 1

    async def Report(self, request_iterator: Any, context: Any) -> routing_pb2.ReportResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
        raise AssertionError

    async def Route(self, request: routing_pb2.RouteRequest, context: Any) -> routing_pb2.RouteResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
        raise AssertionError


async def serve(router: Router, socket: object) -> aio.Server:
    server = aio.server()
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(router, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    return server
