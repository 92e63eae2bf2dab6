"""Weighted fair queuing between tenants, by tokens.

Start-time fair queuing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996): each tenant's next request has a
virtual start, the lowest goes first, and the tenant's next one starts ``cost / weight`` later.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Generic

from controlplane.routing.admission.waiter import Payload, Waiter

#: Entries that are no longer valid may outnumber the valid ones by this before they are swept out.
SLACK = 64
#: Tenants without a waiting request whose place is remembered; beyond that they start anew.
MAX_IDLE = 4_096


class Line(Generic[Payload]):
    """One tenant's waiting requests, oldest first, and its place in virtual time."""

    __slots__ = ("finish", "start", "tenant", "ticket", "tokens", "waiters")

    def __init__(self, tenant: bytes) -> None:
        self.tenant = tenant
        self.waiters: OrderedDict[int, Waiter[Payload]] = OrderedDict()
        self.tokens = 0
        self.start = 0.0
        self.finish = 0.0
        self.ticket = 0


class FairQueue(Generic[Payload]):
    """The waiting requests of one priority.

    Any two tenants that wait all the time get tokens in proportion to their weights, within one request of each
    (theorem 1 of the paper): ``|got_a / weight_a - got_b / weight_b| <= largest_a / weight_a + largest_b / weight_b``.
    A tenant that did not wait earns nothing by it. Every operation costs O(log n), amortized.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.cost = 0
        self._waiters: OrderedDict[int, Waiter[Payload]] = OrderedDict()
        self._lines: dict[bytes, Line[Payload]] = {}
        self._active = 0
        #: (virtual start, ticket, line): valid while the line has that ticket and somebody waits in it.
        self._heap: list[tuple[float, int, Line[Payload]]] = []
        self._virtual = 0.0
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def held(self, tenant: bytes) -> tuple[int, int]:
        """Return how many requests of a tenant wait, and their prompt tokens."""
        line = self._lines.get(tenant)
        return (len(line.waiters), line.tokens) if line is not None else (0, 0)

    def add(self, waiter: Waiter[Payload]) -> None:
        """Put a waiter at the end of its tenant's line."""
        line = self._lines.get(waiter.tenant)
        if line is None:
            line = self._lines[waiter.tenant] = Line(waiter.tenant)
        if not line.waiters:
            self._active += 1
            self._enter(line, max(self._virtual, line.finish))
        line.waiters[waiter.number] = waiter
        line.tokens += waiter.tokens
        self._waiters[waiter.number] = waiter
        self.tokens += waiter.tokens
        self.cost += waiter.cost

    def head(self) -> Waiter[Payload] | None:
        """Return the waiter that is next, or None."""
        heap = self._heap
        while heap:
            _, ticket, line = heap[0]
            if line.ticket == ticket and line.waiters:
                return next(iter(line.waiters.values()))
            heappop(heap)
        return None

    def newest(self) -> Waiter[Payload] | None:
        """Return the waiter that came last, or None."""
        return next(reversed(self._waiters.values())) if self._waiters else None

    def take(self, waiter: Waiter[Payload], weight: float) -> None:
        """Let the waiter go that ``head`` returned; its tenant pays ``cost / weight``."""
        line = self._lines[waiter.tenant]
        self._virtual = line.start
        line.finish = line.start + waiter.cost / weight
        self._drop(waiter, line)
        if line.waiters:
            self._enter(line, line.finish)
        self._settle()

    def remove(self, waiter: Waiter[Payload]) -> None:
        """Take a waiter out that does not go; its tenant pays nothing."""
        self._drop(waiter, self._lines[waiter.tenant])
        self._settle()

    def _drop(self, waiter: Waiter[Payload], line: Line[Payload]) -> None:
        del line.waiters[waiter.number], self._waiters[waiter.number]
        line.tokens -= waiter.tokens
        self.tokens -= waiter.tokens
        self.cost -= waiter.cost
        if not line.waiters:
            self._active -= 1

    def _enter(self, line: Line[Payload], start: float) -> None:
        self._tickets += 1
        line.ticket = self._tickets
        line.start = start
        heappush(self._heap, (start, line.ticket, line))

    def _settle(self) -> None:
        """Forget what no longer counts: all of it when nobody waits, else when it has piled up."""
        if not self._waiters:
            self._lines.clear()
            self._heap.clear()
            self._virtual = 0.0
            return
        if len(self._heap) > 2 * self._active + SLACK:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1] and entry[2].waiters]
            heapify(self._heap)
        if len(self._lines) > 2 * self._active + SLACK + MAX_IDLE:
            self._lines = {tenant: line for tenant, line in self._lines.items() if line.waiters}
