"""HAProxy's counts of its servers, asked for as often as reports need them."""

from __future__ import annotations

import asyncio
import logging

from dataplane.errors import DataplaneError
from dataplane.gateway.applier import Gateway
from dataplane.pb import node_pb2

_log = logging.getLogger(__name__)

#: A report waits this long for fresh counts; HAProxy answers within a few milliseconds, or hangs.
WAIT_S = 0.1
#: Counts are fresh for this long: bursts of reports cost HAProxy no more than a few answers a second.
FRESH_S = 0.25
#: Older counts are not told any more.
STALE_S = 6.0


class ServerCounts:
    """The newest counts of one gateway; a HAProxy that hangs never holds up a report."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._counts: list[node_pb2.ServerStats] = []
        self._at_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def newest(self) -> list[node_pb2.ServerStats]:
        """Return the counts, fresh ones when they can be had at once; none when they are too old to be told."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._at_s > FRESH_S:
            if self._asking is None or self._asking.done():
                self._asking = loop.create_task(self._ask())
            await asyncio.wait({self._asking}, timeout=WAIT_S)
        return self._counts if loop.time() - self._at_s < STALE_S else []

    async def _ask(self) -> None:
        try:
            self._counts = await self._gateway.stats()  # has a time limit of its own
            self._at_s = asyncio.get_running_loop().time()
        except (DataplaneError, OSError) as error:
            _log.warning("HAProxy's counts cannot be read: %s", error)
