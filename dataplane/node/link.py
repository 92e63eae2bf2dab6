"""The agent's one conversation: reports to the controller, orders from it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio

from dataplane.pb import node_pb2, node_pb2_grpc

_log = logging.getLogger(__name__)

#: A report comes at least this often (NodeService.Connect).
REPORT_INTERVAL_S = 2.0
#: Changes within this time go into one report: a burst of them costs one message.
MIN_REPORT_INTERVAL_S = 0.02
#: Between tries to connect: doubles from the first to the last, with up to a quarter of it at random on top.
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0
#: A conversation that lasted this long starts the tries over.
LASTING_S = 5.0
#: A topology of 4,096 replicas is about 1 MB.
MAX_MESSAGE_BYTES = 64 << 20

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", int(FIRST_RETRY_S * 1000)),
    ("grpc.min_reconnect_backoff_ms", int(FIRST_RETRY_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(LAST_RETRY_S * 1000)),
    # A path below the state directory is never a proxy's business.
    ("grpc.enable_http_proxy", 0),
)


class ControllerLink:
    """Connects, reports, takes orders, connects again; ``run`` ends only when it is cancelled.

    ``report`` makes a whole report; ``take`` gets whole orders and must not raise.
    """

    def __init__(
        self,
        target: str,
        report: Callable[[], Awaitable[node_pb2.NodeReport]],
        take: Callable[[node_pb2.NodeOrders], None],
    ) -> None:
        self._target = target
        self._report = report
        self._take = take
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Let a report go out now."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the conversation up."""
        loop = asyncio.get_running_loop()
        pause = FIRST_RETRY_S
        async with grpc.aio.insecure_channel(self._target, options=_OPTIONS) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            while True:
                began = loop.time()
                try:
                    await self._converse(stub)
                    _log.info("the controller ended the conversation")
                except grpc.aio.AioRpcError as error:
                    _log.info("no controller at %s: %s", self._target, error.details())
                if loop.time() - began > LASTING_S:
                    pause = FIRST_RETRY_S
                await asyncio.sleep(pause * random.uniform(1.0, 1.25))
                pause = min(2 * pause, LAST_RETRY_S)

    async def _converse(self, stub: node_pb2_grpc.NodeServiceAsyncStub) -> None:
        call = stub.Connect(self._reports())
        try:
            async for orders in call:
                self._take(orders)
        finally:
            call.cancel()

    async def _reports(self) -> AsyncIterator[node_pb2.NodeReport]:
        while True:
            self._changed.clear()
            yield await self._report()
            await asyncio.sleep(MIN_REPORT_INTERVAL_S)
            try:
                async with asyncio.timeout(REPORT_INTERVAL_S - MIN_REPORT_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue
