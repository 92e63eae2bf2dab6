"""One model's waiting requests: bounded, fair between tenants, urgent ones first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic

from controlplane.routing.admission.counts import Counts, Shed
from controlplane.routing.admission.drain import Drain
from controlplane.routing.admission.fair import SLACK, FairQueue
from controlplane.routing.admission.settings import PRIORITIES, Settings
from controlplane.routing.admission.waiter import Payload, Waiter


@dataclass(frozen=True, slots=True)
class Arrival(Generic[Payload]):
    """What became of a request: it waits (``shed`` is None), or is to come back in ``retry_after_s``.

    ``displaced`` are less urgent ones that had to leave for it.
    """

    shed: Shed | None = None
    retry_after_s: int = 0
    displaced: tuple[Waiter[Payload], ...] = ()


class Queue(Generic[Payload]):
    """The waiting requests of one model.

    Order: the most urgent priority first; within it start-time fair queuing between tenants, and within a tenant the
    order of arrival. Of all tokens that go while a less urgent priority waits, each such priority is owed
    ``guaranteed_share``; as soon as that covers its next request, this one goes first. So a request that is next in
    its priority waits for at most ``cost / guaranteed_share`` tokens of more urgent ones (and one request), whatever
    these do.

    Bounds: requests and prompt tokens, of each tenant within each priority and of all together. Where all together
    are full, a more urgent request displaces the newest of the least urgent ones. A waiter leaves exactly once: by
    ``release``, ``expire``, ``cancel`` or displaced. Every operation costs O(log n), amortized.

    The same calls with the same ``now_s`` have the same results. Not thread-safe.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.drain = Drain()
        self.counts = tuple(Counts() for _ in PRIORITIES)
        self.tokens = 0
        self._classes: tuple[FairQueue[Payload], ...] = tuple(FairQueue() for _ in PRIORITIES)
        self._owed = [0.0] * len(PRIORITIES)
        self._waiters: dict[bytes, Waiter[Payload]] = {}
        self._deadlines: list[tuple[float, int, Waiter[Payload]]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._waiters

    def depths(self) -> tuple[tuple[int, int], ...]:
        """Return (requests, prompt tokens) that wait, by priority."""
        return tuple((len(lane), lane.tokens) for lane in self._classes)

    def arrive(self, waiter: Waiter[Payload], now_s: float) -> Arrival[Payload]:
        """Let a request wait, or say why it cannot. One that waits already starts anew."""
        self.cancel(waiter.request_id)
        shed = self._full_for(waiter)
        if shed is not None:
            return self._refuse(waiter, shed, now_s)
        displaced = self._make_room(waiter, now_s)
        if not self._waiters:
            self.drain.begin(now_s)
        self._number += 1
        waiter.number = self._number
        waiter.deadline_s = now_s + self.settings.timeouts_s[waiter.priority]
        self._waiters[waiter.request_id] = waiter
        self.tokens += waiter.tokens
        self._classes[waiter.priority].add(waiter)
        heappush(self._deadlines, (waiter.deadline_s, waiter.number, waiter))
        self.counts[waiter.priority].waited += 1
        return Arrival(displaced=displaced)

    def full_for(self, waiter: Waiter[Payload], now_s: float) -> Arrival[Payload] | None:
        """Return how a request would be refused, and count it; None when it may wait. Nothing else changes."""
        shed = self._full_for(waiter)
        return None if shed is None else self._refuse(waiter, shed, now_s)

    def head(self) -> Waiter[Payload] | None:
        """Return the waiter that goes next, or None when nobody waits."""
        lane = self._next()
        return None if lane is None else self._classes[lane].head()

    def release(self, may_go: Callable[[Waiter[Payload]], bool], now_s: float, limit: int) -> list[Waiter[Payload]]:
        """Let waiters go, in order, while ``may_go`` says so of the next one; at most ``limit``.

        ``may_go`` counts the request where it goes, so that the next answer knows of it.
        """
        gone: list[Waiter[Payload]] = []
        while len(gone) < limit:
            lane = self._next()
            if lane is None:
                break
            waiter = self._classes[lane].head()
            if waiter is None or not may_go(waiter):
                break
            self._pay(lane, waiter.cost)
            self._classes[lane].take(waiter, self.settings.weight(waiter.tenant))
            self._forget(waiter)
            self.drain.released(waiter.cost, now_s)
            counts = self.counts[lane]
            counts.released += 1
            counts.released_tokens += waiter.cost
            counts.released_waited_s += max(0.0, now_s - waiter.arrived_s)
            gone.append(waiter)
        return gone

    def expire(self, now_s: float) -> list[Waiter[Payload]]:
        """Take out everybody whose deadline has come."""
        late: list[Waiter[Payload]] = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now_s:
            waiter = heappop(deadlines)[2]
            if self._waiters.get(waiter.request_id) is waiter:
                self._remove(waiter)
                self.counts[waiter.priority].shed[Shed.TIMEOUT] += 1
                late.append(waiter)
        return late

    def next_deadline_s(self) -> float | None:
        """Return when ``expire`` may have something to do; None when nobody waits."""
        return self._deadlines[0][0] if self._waiters else None

    def cancel(self, request_id: bytes) -> bool:
        """Take a request out that nobody waits for any more; False when it does not wait."""
        waiter = self._waiters.get(request_id)
        if waiter is None:
            return False
        self._remove(waiter)
        self.counts[waiter.priority].left += 1
        return True

    def clear(self) -> list[Waiter[Payload]]:
        """Take out everybody, oldest first."""
        everybody = list(self._waiters.values())
        for waiter in everybody:
            self._remove(waiter)
            self.counts[waiter.priority].left += 1
        return everybody

    def retry_after_s(self, priority: int, now_s: float) -> int:
        """Return after how many seconds a request of this priority would probably find the queue drained."""
        ahead = sum(lane.cost for lane in self._classes[: priority + 1])
        return self.drain.retry_after_s(ahead, self.settings.timeouts_s[priority], now_s)

    def _full_for(self, waiter: Waiter[Payload]) -> Shed | None:
        settings = self.settings
        requests, tokens = self._classes[waiter.priority].held(waiter.tenant)
        if requests >= settings.tenant_requests:
            return Shed.TENANT_REQUESTS
        if tokens + waiter.tokens > settings.tenant_tokens:
            return Shed.TENANT_TOKENS
        lower = self._classes[waiter.priority + 1 :]
        if len(self._waiters) >= settings.max_requests + sum(map(len, lower)):
            return Shed.QUEUE_REQUESTS
        if self.tokens + waiter.tokens > settings.max_tokens + sum(lane.tokens for lane in lower):
            return Shed.QUEUE_TOKENS
        return None

    def _refuse(self, waiter: Waiter[Payload], shed: Shed, now_s: float) -> Arrival[Payload]:
        self.counts[waiter.priority].shed[shed] += 1
        return Arrival(shed, self.retry_after_s(waiter.priority, now_s))

    def _make_room(self, waiter: Waiter[Payload], now_s: float) -> tuple[Waiter[Payload], ...]:
        """Take out the newest of the least urgent until the waiter fits, which ``_full_for`` has found possible."""
        settings = self.settings
        displaced: list[Waiter[Payload]] = []
        for lane in reversed(self._classes[waiter.priority + 1 :]):
            while len(self._waiters) >= settings.max_requests or self.tokens + waiter.tokens > settings.max_tokens:
                newest = lane.newest()
                if newest is None:
                    break
                self._remove(newest)
                self.counts[newest.priority].shed[Shed.DISPLACED] += 1
                displaced.append(newest)
        return tuple(displaced)

    def _next(self) -> int | None:
        """Return the priority whose turn it is: the most urgent that waits, or one that is owed its next request."""
        first = None
        for priority, lane in enumerate(self._classes):
            if not lane:
                continue
            if first is None:
                first = priority
            elif (head := lane.head()) is not None and self._owed[priority] >= head.cost:
                return priority
        return first

    def _pay(self, lane: int, cost: int) -> None:
        """Take what a priority was owed for the request that goes, and owe its share to each less urgent one."""
        self._owed[lane] = max(0.0, self._owed[lane] - cost)
        for priority in range(lane + 1, len(self._classes)):
            if self._classes[priority]:
                self._owed[priority] += cost * self.settings.guaranteed_share

    def _remove(self, waiter: Waiter[Payload]) -> None:
        self._classes[waiter.priority].remove(waiter)
        self._forget(waiter)

    def _forget(self, waiter: Waiter[Payload]) -> None:
        del self._waiters[waiter.request_id]
        self.tokens -= waiter.tokens
        if not self._classes[waiter.priority]:
            self._owed[waiter.priority] = 0.0
        if not self._waiters:
            self._deadlines.clear()
        elif len(self._deadlines) > 2 * len(self._waiters) + SLACK:
            self._deadlines = [entry for entry in self._deadlines if self._waiters.get(entry[2].request_id) is entry[2]]
            heapify(self._deadlines)
