"""What happened, in a bounded ring: told to watchers at once, stored with the next write."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from controlplane.store.base import MAX_EVENTS, StoredEvent

#: Characters of an event's message: an engine's last words fit, a page of log does not.
MAX_MESSAGE = 1_000


class EventLog:
    """The newest events. ``wall_ms`` gives milliseconds since 1970, UTC: shown to people, never decided on.

    Every watcher reads the ring at its own pace: one that is slower than MAX_EVENTS misses the oldest, and none can
    make the ring grow.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._ring: deque[StoredEvent] = deque(maxlen=MAX_EVENTS)
        self._stored = 0
        self._next = 1
        self._changed = asyncio.Event()

    def restore(self, events: Iterable[StoredEvent]) -> None:
        """Continue after the stored ones."""
        self._ring.extend(events)
        self._stored = self._ring[-1].number if self._ring else 0
        self._next = self._stored + 1

    def add(self, subject: str, reason: str, message: str) -> None:
        """Add one event; ``reason`` is stable snake_case, ``subject`` as in replica/tiny-mixed-0."""
        text = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 3] + "..."
        self._ring.append(StoredEvent(self._next, self._wall_ms(), subject, reason, text))
        self._next += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def unstored(self) -> tuple[StoredEvent, ...]:
        """Return the events that no write has taken yet."""
        return tuple(event for event in self._ring if event.number > self._stored)

    def stored(self, events: Iterable[StoredEvent]) -> None:
        """Note that a write has taken these."""
        self._stored = max((event.number for event in events), default=self._stored)

    def about(self, subject: str, limit: int) -> list[StoredEvent]:
        """Return the newest ``limit`` events of one subject, newest last."""
        found = [event for event in self._ring if event.subject == subject]
        return found[-limit:]

    def newest(self, limit: int) -> list[StoredEvent]:
        """Return the newest ``limit`` events, newest last."""
        return list(self._ring)[-limit:]

    async def watch(self, after: int) -> AsyncIterator[StoredEvent]:
        """Yield each event with a number above ``after``, then each later one as it comes."""
        while True:
            changed = self._changed
            batch = [event for event in self._ring if event.number > after]
            for event in batch:
                after = event.number
                yield event
            if not batch:
                await changed.wait()
