"""RoutingService: the same decisions over gRPC, and what the router can tell of them."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import NoReturn, TypeVar

import grpc
import grpc.aio

from controlplane.errors import ControlplaneError, InvalidRequest, NotFound
from controlplane.router import receipts, status
from controlplane.router.calls import Calls
from controlplane.router.counters import Counters
from controlplane.router.precise.loading import PreciseModels
from controlplane.router.reports import Reports
from controlplane.router.telemetry import EngineTelemetry
from controlplane.router.topology import InstalledTopology
from controlplane.router.waiting import Waiting
from controlplane.routing.admission.settings import DEFAULT_PRIORITY, PRIORITY_NUMBERS
from controlplane.routing.core import RoutingCore
from controlplane.routing.features import from_parts
from controlplane.routing.load import Decision
from dataplane.errors import EDGE_ERRORS
from dataplane.pb import routing_pb2 as pb
from dataplane.pb.routing_pb2_grpc import RoutingServiceServicer

#: As long as HAProxy's log line takes them.
REQUEST_ID = re.compile(r"[!-~]{1,128}")
MAX_TENANT_BYTES = 255
#: A page, a terminal and a few spares.
MAX_WATCHERS = 16
#: Node agents of other machines, each with one stream.
MAX_RELAYS = 4_096
WATCH_INTERVAL_S = 0.1
DEFAULT_RECEIPTS_PER_S = 100
#: Unpacking takes some 10 us each: a watcher never holds the decisions up for more than 5 ms.
MAX_RECEIPTS_PER_TURN = 500

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class RoutingService(RoutingServiceServicer):
    """Serves one router's core; everything runs on the router's event loop."""

    def __init__(
        self,
        core: RoutingCore,
        installed: InstalledTopology,
        counters: Counters,
        clock: Callable[[], float],
        read_log: Callable[[], None],
        reports: Reports,
        telemetry: EngineTelemetry,
        waiting: Waiting,
        precise: PreciseModels,
    ) -> None:
        """``read_log`` takes the log lines that wait, so that answers tell of requests that have just ended."""
        self._core = core
        self._installed = installed
        self._counters = counters
        self._clock = clock
        self._read_log = read_log
        self._calls = Calls(lambda completion: core.finished(completion, clock()))
        self._reports = reports
        self._telemetry = telemetry
        self._waiting = waiting
        self._precise = precise
        self._relays = 0
        self._watchers = 0

    async def Route(  # noqa: N802 - gRPC's name
        self, request: pb.RouteRequest, context: grpc.aio.ServicerContext[pb.RouteRequest, pb.RouteResponse]
    ) -> pb.RouteResponse:
        """Decide for a caller that speaks to the replica itself."""
        try:
            return await self._route(request)
        except ControlplaneError as error:
            return await _abort(context, error)

    async def Explain(  # noqa: N802
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext[pb.ExplainRequest, pb.Receipt]
    ) -> pb.Receipt:
        """Return the receipt of a request."""
        self._read_log()
        found = self._core.receipt(request.request_id.encode())
        if found is None:
            return await _abort(context, NotFound(f"there is no receipt of the request {request.request_id[:128]!r}"))
        return receipts.message(found)

    async def WatchReceipts(  # noqa: N802
        self,
        request: pb.WatchReceiptsRequest,
        context: grpc.aio.ServicerContext[pb.WatchReceiptsRequest, pb.WatchReceiptsResponse],
    ) -> AsyncIterator[pb.WatchReceiptsResponse]:
        """Send receipts as they are made, from now on."""
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MAX_WATCHERS} watchers already")
        self._watchers += 1
        try:
            async for response in self._watch(request.model, request.max_per_second or DEFAULT_RECEIPTS_PER_S):
                yield response
        finally:
            self._watchers -= 1

    async def Status(  # noqa: N802
        self,
        request: pb.RouterStatusRequest,
        context: grpc.aio.ServicerContext[pb.RouterStatusRequest, pb.RouterStatusResponse],
    ) -> pb.RouterStatusResponse:
        """Return counts since the start and the load of every replica."""
        self._read_log()
        message = status.message(
            self._core, self._installed, self._counters, self._reports, self._telemetry, self._clock()
        )
        precise = self._precise.status()
        if precise is not None:
            message.precise.CopyFrom(precise)
        return message

    async def Report(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.ReportRequest],
        context: grpc.aio.ServicerContext[pb.ReportRequest, pb.ReportResponse],
    ) -> pb.ReportResponse:
        """Take what a node agent relays of its engines until it ends the stream."""
        if self._relays >= MAX_RELAYS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MAX_RELAYS} relays already")
        self._relays += 1
        reports = self._reports
        taken, ignored = reports.taken.total(), reports.ignored.total()
        try:
            async for request in request_iterator:
                for datagram in request.datagrams:
                    reports.datagram(datagram)
        finally:
            self._relays -= 1
        return pb.ReportResponse(taken=reports.taken.total() - taken, ignored=reports.ignored.total() - ignored)

    async def _route(self, request: pb.RouteRequest) -> pb.RouteResponse:
        request_id = request.request_id or f"grpc-{secrets.token_hex(16)}"
        if REQUEST_ID.fullmatch(request_id) is None:
            raise InvalidRequest("request_id has 1 to 128 printable characters and no space")
        if len(request.tenant.encode()) > MAX_TENANT_BYTES:
            raise InvalidRequest(f"tenant has at most {MAX_TENANT_BYTES} bytes")
        features = from_parts(
            kind=request.kind,
            model=request.model,
            session=request.session,
            tenant=request.tenant,
            body=request.body,
            body_bytes=request.body_bytes,
            prefix_hashes=request.prefix_hashes,
        )
        priority = PRIORITY_NUMBERS.get(request.priority.encode(), DEFAULT_PRIORITY)
        whole = request.body if len(request.body) >= features.body_bytes else b""
        prompt = (
            await self._precise.prompt(features.model, features.kind, features.tenant, whole)
            if features.plain
            else None
        )
        held = None if prompt is None else prompt.held
        decision = self._core.decide(request_id.encode(), features, self._clock(), held, priority)
        if prompt is not None and decision.server:
            prompt.sent(decision.server)
        if decision.outcome == "wait":
            decision = await self._waiting.decision(request_id.encode())
            if decision.outcome == "failed":
                raise RuntimeError("the decision failed; the router's log says where")
        if decision.outcome == "go":
            self._calls.begin(request_id.encode(), decision.server)
        return _response(request_id, decision)

    async def _watch(self, model: str, per_second: int) -> AsyncIterator[pb.WatchReceiptsResponse]:
        number = self._core.counters().receipts
        allowed = 1.0
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            allowed = min(float(per_second), allowed + per_second * WATCH_INTERVAL_S)
            last = self._core.counters().receipts
            if last == number:
                continue
            first = max(number, last - MAX_RECEIPTS_PER_TURN)
            batch = self._core.receipts_after(first, limit=int(allowed), model=model)
            allowed -= len(batch.receipts)
            skipped = batch.skipped + first - number
            number = batch.last
            yield pb.WatchReceiptsResponse(receipts=map(receipts.message, batch.receipts), skipped=skipped)


def _response(request_id: str, decision: Decision) -> pb.RouteResponse:
    error = EDGE_ERRORS.get(decision.error)
    return pb.RouteResponse(
        request_id=request_id,
        outcome=decision.outcome,
        pool=decision.pool_name,
        server=decision.server_name,
        address=decision.address,
        error_code=decision.error,
        retry_after_s=decision.retry_after_s,
        error_message="" if error is None else error.message,
    )


async def _abort(context: grpc.aio.ServicerContext[_Asked, _Answer], error: ControlplaneError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.grpc_status], f"{error.code}: {error}")
    raise AssertionError("abort raises")
