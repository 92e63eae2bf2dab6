"""The newest topology, and those who wait for a newer one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from controlplane.errors import ControlplaneError
from dataplane.pb import topology_pb2

#: Streams that may watch at once: a router for each gateway, and operators.
MAX_WATCHERS = 256


class TooManyWatchers(ControlplaneError):
    """More streams watch than one controller serves."""

    code: ClassVar[str] = "too_many_watchers"
    grpc_status: ClassVar[str] = "RESOURCE_EXHAUSTED"


class TopologyBoard:
    """Holds the newest snapshot only; a watcher that is slow skips the ones between."""

    def __init__(self) -> None:
        self.current: topology_pb2.Topology | None = None
        self.watchers = 0
        self._changed = asyncio.Event()

    def publish(self, topology: topology_pb2.Topology) -> None:
        """Replace the snapshot. It is never changed afterwards."""
        self.current = topology
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self, after: int) -> AsyncIterator[topology_pb2.Topology]:
        """Yield the newest snapshot when its number is above ``after``, then each later one.

        Raises TooManyWatchers.
        """
        if self.watchers >= MAX_WATCHERS:
            raise TooManyWatchers(f"{MAX_WATCHERS} streams watch the topology already")
        self.watchers += 1
        try:
            while True:
                changed = self._changed
                if self.current is not None and self.current.number > after:
                    after = self.current.number
                    yield self.current
                else:
                    await changed.wait()
        finally:
            self.watchers -= 1
