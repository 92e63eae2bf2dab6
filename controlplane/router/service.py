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
from controlplane.router import receipts
from controlplane.router.calls import Calls
from controlplane.router.counters import Counters
from controlplane.router.topology import InstalledTopology
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
    ) -> None:
        """``read_log`` takes the log lines that wait, so that answers tell of requests that have just ended."""
        self._core = core
        self._installed = installed
        self._counters = counters
        self._clock = clock
        self._read_log = read_log
        self._calls = Calls(lambda completion: core.finished(completion, clock()))
        self._watchers = 0

    async def Route(  # noqa: N802 - gRPC's name
        self, request: pb.RouteRequest, context: grpc.aio.ServicerContext[pb.RouteRequest, pb.RouteResponse]
    ) -> pb.RouteResponse:
        """Decide for a caller that speaks to the replica itself."""
        try:
            return self._route(request)
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
        known = self._core.counters()
        return pb.RouterStatusResponse(
            topology_number=self._installed.number,
            topology_from_disk=self._installed.from_disk,
            topology_age_s=self._installed.age_s,
            decisions=known.decisions,
            errors=self._counters.errors,
            log_lines=self._counters.log_lines,
            log_lines_unmatched=known.unmatched + self._counters.log_lines_malformed,
            protocol_errors=self._counters.protocol_errors,
            receipts=known.receipts,
            replicas=[
                pb.ReplicaLoad(
                    server=load.server,
                    pool=load.pool,
                    in_flight=load.in_flight,
                    decisions=load.decisions,
                    first_byte_ms=load.first_byte_ms,
                )
                for load in self._core.loads()
            ],
            decisions_by_reason=known.decisions_by_reason,
        )

    def _route(self, request: pb.RouteRequest) -> pb.RouteResponse:
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
        decision = self._core.decide(request_id.encode(), features, self._clock())
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
        error_message="" if error is None else error.message,
    )


async def _abort(context: grpc.aio.ServicerContext[_Asked, _Answer], error: ControlplaneError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.grpc_status], f"{error.code}: {error}")
    raise AssertionError("abort raises")
