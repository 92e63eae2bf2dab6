"""Decisions for gRPC callers. Their requests do not pass HAProxy, so no log line tells when they end.

Each counts as in flight for CALL_IN_FLIGHT_S and is then ended here, whatever became of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from controlplane.routing.events import Completion

#: About as long as a chat answer takes; below the core's ORPHAN_AGE_S, so that each ends here and only once.
CALL_IN_FLIGHT_S = 25.0
#: Beyond this many the oldest ends early: 400 calls a second is more than this API is for.
MAX_CALLS = 10_000


class Calls:
    """The decisions that were given to gRPC callers and still count as in flight."""

    def __init__(self, finished: Callable[[Completion], object], lifetime_s: float = CALL_IN_FLIGHT_S) -> None:
        self._finished = finished
        self._lifetime_s = lifetime_s
        self._waiting: deque[tuple[float, bytes, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, request_id: bytes, server: bytes) -> None:
        """Count one decision as in flight."""
        if len(self._waiting) == MAX_CALLS:
            self._end_oldest()
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._lifetime_s, request_id, server))
        if self._timer is None:
            self._timer = loop.call_later(self._lifetime_s, self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._waiting[0][0] <= loop.time():
            self._end_oldest()
        self._timer = loop.call_at(self._waiting[0][0], self._expire) if self._waiting else None

    def _end_oldest(self) -> None:
        _, request_id, server = self._waiting.popleft()
        self._finished(Completion(request_id, server, 0, -1, -1, 0, b"", 0))
