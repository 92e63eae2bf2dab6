"""Requests that wait for a decision: HAProxy asks for each with a `wait` message, whose answer is held back here.

A request has a place from the moment the routing core says ``wait``. HAProxy asks for it within milliseconds, and
again at the end of each slice (dataplane/gateway/waits.py); a place that nobody asks for within GRACE_S is that of a
client that has left, and is given up. What the core decides while nobody asks is kept for the next question.
A client whose leaving HAProxy has not noticed keeps its place until its turn: HAProxy then notices, and its log line
ends the request at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from controlplane.router.deferred import Deferred
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import Completion
from controlplane.routing.load import Decision
from dataplane.gateway.waits import MIN_SLICE_S

#: Seconds between two looks at the queues while somebody waits: little beside any prefill, and some 2 % of a core.
TICK_S = 0.002
#: Payload that sets and unsets nothing: HAProxy asks again.
AGAIN = b""
#: Seconds within which HAProxy asks (again) unless the client has left; on a loaded machine it takes some 10 ms.
GRACE_S = 1.0


class _Place:
    """One waiting request: who is to be told, or what; ``turn`` counts how often that changed."""

    __slots__ = ("decision", "deferred", "future", "request_id", "turn")

    def __init__(self, request_id: bytes) -> None:
        self.request_id = request_id
        self.deferred: Deferred | None = None
        self.future: asyncio.Future[Decision] | None = None
        self.decision: Decision | None = None
        self.turn = 0


class Waiting:
    """The places of one router, on its event loop.

    There are as many as the core has waiting requests, and those decided within the last GRACE_S that nobody asked for.
    """

    def __init__(
        self,
        core: RoutingCore,
        clock: Callable[[], float],
        encode: Callable[[Decision], bytes],
        failed: Callable[[Exception], None],
    ) -> None:
        """``encode`` makes the payload that ends a wait; ``failed`` is told of an exception in the core."""
        self._core = core
        self._clock = clock
        self._encode = encode
        self._failed = failed
        self._places: dict[bytes, _Place] = {}
        self._slices: deque[tuple[float, _Place, int]] = deque()
        self._graces: deque[tuple[float, _Place, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.slice_s = MIN_SLICE_S
        #: Places that nobody asked for any more, and released requests among them.
        self.gone = 0
        self.released_in_vain = 0

    def __len__(self) -> int:
        return len(self._places)

    def began(self, request_id: bytes) -> None:
        """Give a request a place: the core has said ``wait``, and HAProxy will ask."""
        self._expect(self._take(request_id))

    def asked(self, request_id: bytes) -> Deferred | bytes | None:
        """Return the answer to `wait`, now or later; None when the request has no place here."""
        place = self._places.get(request_id)
        if place is None:
            return None
        place.turn += 1
        if place.decision is not None:
            del self._places[request_id]
            return self._encode(place.decision)
        place.deferred = deferred = Deferred(lambda: self._lost(place, deferred))
        self._slices.append((asyncio.get_running_loop().time() + self.slice_s, place, place.turn))
        return deferred

    async def decision(self, request_id: bytes) -> Decision:
        """Wait for the decision of a request for which the core has said ``wait``; cancelled, it leaves."""
        place = self._take(request_id)
        place.future = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            return await place.future
        finally:
            if self._places.get(request_id) is place:
                self._give_up(place)

    def tick(self) -> None:
        """Tell those whose time has come."""
        self._timer = None
        for request_id, decision in self._released():
            self._tell(request_id, decision)
        now = asyncio.get_running_loop().time()
        while self._slices and self._slices[0][0] <= now:
            _, place, turn = self._slices.popleft()
            if place.turn == turn and place.deferred is not None:
                deferred = place.deferred
                place.deferred = None
                if deferred.answer(AGAIN):
                    self._expect(place)
        while self._graces and self._graces[0][0] <= now:
            _, place, turn = self._graces.popleft()
            if place.turn == turn and self._places.get(place.request_id) is place:
                self.gone += 1
                self._give_up(place)
        if self._places or self._core.may_release:
            self._wake()
        else:
            self._slices.clear()
            self._graces.clear()

    def _released(self) -> list[tuple[bytes, Decision]]:
        if not self._core.may_release:
            return []
        try:
            return self._core.release(self._clock())
        except Exception as error:  # the request that it was about is among the next answers
            self._failed(error)
            return []

    def stop(self) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self.tick)

    def _take(self, request_id: bytes) -> _Place:
        place = self._places[request_id] = _Place(request_id)
        return place

    def _expect(self, place: _Place) -> None:
        """Give the place up when nobody asks for it in time."""
        place.turn += 1
        self._graces.append((asyncio.get_running_loop().time() + GRACE_S, place, place.turn))
        self._wake()

    def _tell(self, request_id: bytes, decision: Decision) -> None:
        place = self._places.get(request_id)
        if place is None:
            self._undo(request_id, decision)
        elif place.future is not None:
            del self._places[request_id]
            if place.future.done():
                self._undo(request_id, decision)
            else:
                place.future.set_result(decision)
        elif place.deferred is None:
            place.decision = decision
        else:
            del self._places[request_id]
            place.turn += 1
            place.deferred.answer(self._encode(decision))

    def _lost(self, place: _Place, deferred: Deferred) -> None:
        """HAProxy's connection has ended, and so it has balanced this request by itself."""
        if place.deferred is deferred and self._places.get(place.request_id) is place:
            self._give_up(place)

    def _give_up(self, place: _Place) -> None:
        del self._places[place.request_id]
        place.turn += 1
        if place.decision is not None:
            self._undo(place.request_id, place.decision)
        else:
            self._core.leave(place.request_id, self._clock())

    def _undo(self, request_id: bytes, decision: Decision) -> None:
        """Count a request no more that was sent to a replica and has nobody who takes it there."""
        if decision.outcome == "go":
            self.released_in_vain += 1
            self._core.finished(Completion(request_id, decision.server, 0, -1, -1, 0, b"", 0), self._clock())
