"""What the router tells: its counts, and the newest decisions while somebody looks at the page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc import aio

from dataplane.pb import routing_pb2, routing_pb2_grpc

#: Decisions that are kept: some screens full.
MAX_DECISIONS = 200
#: Receipts a second that are asked for; more cannot be read, and the router skips and counts the rest.
RECEIPTS_PER_S = 20
#: Seconds without a viewer after which no receipts are asked for any more: an idle page costs nothing.
VIEWER_GONE_S = 10.0
#: Seconds that the router has for its counts; a page without them is better than one that hangs.
STATUS_TIMEOUT_S = 0.5
#: Seconds for which counts are shown again instead of asked anew, however many look.
STATUS_AGE_S = 0.5
#: Seconds between tries to watch receipts of a router that is away.
RETRY_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """A receipt with its place in the order of arrival, from 1."""

    number: int
    receipt: routing_pb2.Receipt


class RouterFeed:
    """One connection to the router's socket, used only when somebody asks."""

    def __init__(self, socket: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = socket
        self._clock = clock
        self._channel: aio.Channel | None = None
        self._decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self.last = 0
        self._viewed_s = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._status: routing_pb2.RouterStatusResponse | None = None
        self._status_s = -STATUS_AGE_S
        self._asking = asyncio.Lock()
        self.skipped = 0

    async def status(self) -> routing_pb2.RouterStatusResponse | None:
        """Return the router's counts, None when it does not answer."""
        async with self._asking:
            if self._clock() - self._status_s < STATUS_AGE_S:
                return self._status
            try:
                request = routing_pb2.RouterStatusRequest()
                self._status = await self._stub().Status(request, timeout=STATUS_TIMEOUT_S)
            except aio.AioRpcError:
                self._status = None
            self._status_s = self._clock()
            return self._status

    async def explain(self, request_id: str) -> routing_pb2.Receipt | None:
        """Return the receipt of one decision as it stands now, None when it is gone or the router is away."""
        try:
            return await self._stub().Explain(
                routing_pb2.ExplainRequest(request_id=request_id), timeout=STATUS_TIMEOUT_S
            )
        except aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}:
                _log.info("the router did not explain a decision: %s", error.details())
        held = next((d for d in self._decisions if d.receipt.request_id == request_id), None)
        return held.receipt if held else None

    def decisions(self, after: int) -> list[Decision]:
        """Return the decisions with a number above ``after``, oldest first, and keep watching for a while."""
        self._viewed_s = self._clock()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return [decision for decision in self._decisions if decision.number > after]

    async def close(self) -> None:
        """End the connection."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> routing_pb2_grpc.RoutingServiceAsyncStub:
        if self._channel is None:
            options = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1_000))
            self._channel = aio.insecure_channel(f"unix:{self._socket}", options=options)
        return routing_pb2_grpc.RoutingServiceStub(self._channel)

    def _viewed(self) -> bool:
        return self._clock() - self._viewed_s < VIEWER_GONE_S

    async def _watch(self) -> None:
        while self._viewed():
            reading = asyncio.create_task(self._read())
            try:
                while self._viewed() and not reading.done():
                    await asyncio.wait({reading}, timeout=RETRY_S)
            finally:
                reading.cancel()
                await asyncio.wait({reading})
            if self._viewed():
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        """Take receipts until the router goes away."""
        request = routing_pb2.WatchReceiptsRequest(max_per_second=RECEIPTS_PER_S)
        with contextlib.suppress(aio.AioRpcError):
            async for answer in self._stub().WatchReceipts(request):
                self.skipped += answer.skipped
                for receipt in answer.receipts:
                    self.last += 1
                    self._decisions.append(Decision(self.last, receipt))
