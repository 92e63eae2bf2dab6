"""The queues of all models: who waits at which, and who goes when there is room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from controlplane.routing.admission.counts import Counts, Shed
from controlplane.routing.admission.queue import Queue
from controlplane.routing.admission.settings import MAX_WAITING, PRIORITIES, Settings
from controlplane.routing.admission.waiter import Waiter
from controlplane.routing.load import Decision
from controlplane.routing.record import KIND_NUMBERS, Request
from controlplane.routing.view import View

#: Requests that cost an engine nothing do not wait for it.
EXEMPT_KINDS = frozenset((KIND_NUMBERS["tokenize"], KIND_NUMBERS["detokenize"]))
#: Requests that go at one call, of one model: some 3 ms of decisions.
RELEASE_LIMIT = 64


class Asked(NamedTuple):
    """What it takes to decide later: the name of the view, the request, and what is known of its cached tokens."""

    name: bytes
    request: Request
    held: Mapping[bytes, int] | None


class Core(Protocol):
    """What the gate needs of the routing core."""

    def try_to_go(self, waiter: Waiter[Asked], view: View, now_s: float, target_s: float) -> Decision:
        """Decide; ``wait`` and no trace when the model is saturated for the request (``target_s`` 0: never)."""

    def refused(
        self, waiter: Waiter[Asked], view: View | None, shed: Shed, retry_after_s: int, now_s: float
    ) -> Decision:
        """Keep the receipt of a request that is told to come back."""

    def without_replica(self, waiter: Waiter[Asked], view: View | None, now_s: float) -> Decision:
        """Keep the receipt of a request that nothing can answer."""


@dataclass(frozen=True, slots=True)
class Depth:
    """One model's queue of one priority."""

    model: str
    priority: str
    waiting: int
    tokens: int
    counts: Counts


class Gate:
    """Admission of every model that has it. The same calls have the same results.

    At most MAX_WAITING requests wait in all; while somebody waits, ``release`` is to be called every few milliseconds.
    """

    def __init__(self, core: Core, waiting_limit: int = MAX_WAITING) -> None:
        self._core = core
        self._limit = waiting_limit
        self._queues: dict[str, Queue[Asked]] = {}
        self._views: Mapping[bytes, View] = {}
        #: Request id -> the queue that it waits in.
        self.where: dict[bytes, Queue[Asked]] = {}
        self._answers: list[tuple[bytes, Decision]] = []
        self._wait = Decision("wait")
        self._failed = Decision("failed")

    def __len__(self) -> int:
        return len(self.where)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self.where

    @property
    def pending(self) -> bool:
        """Whether ``release`` may have something to tell."""
        return bool(self.where or self._answers)

    def install(self, models: Iterable[tuple[str, Settings | None]], views: Mapping[bytes, View], now_s: float) -> None:
        """Take a topology's settings; who waits at a queue that is gone goes at once."""
        wanted = {name: settings for name, settings in models if settings is not None}
        self._views = views
        for name, settings in wanted.items():
            queue = self._queues.get(name)
            if queue is None:
                self._queues[name] = Queue(settings)
            else:
                queue.settings = settings
        for name in [name for name in self._queues if name not in wanted]:
            for waiter in self._queues.pop(name).clear():
                del self.where[waiter.request_id]
                self._answers.append((waiter.request_id, self._let_go(waiter, now_s, 0.0)))
        for view in views.values():
            view.queue = self._queues.get(view.model)

    def enter(
        self,
        request_id: bytes,
        request: Request,
        view: View,
        held: Mapping[bytes, int] | None,
        priority: int,
        now_s: float,
    ) -> Decision:
        """Decide, or let the request wait, or refuse it. Needs ``view.queue``."""
        queue: Queue[Asked] | None = view.queue
        assert queue is not None
        tokens = view.tokens(request.prompt_bytes)
        output = view.expected_output(request.max_tokens)
        asked = Asked((view.adapter or view.model).encode(), request, held)
        waiter = Waiter(request_id, request.tenant, priority, tokens, output, now_s, asked)
        self.leave(request_id, now_s)  # asked again: only the newest answer counts
        if request.kind in EXEMPT_KINDS:
            return self._core.try_to_go(waiter, view, now_s, 0.0)
        if not queue:
            decision = self._core.try_to_go(waiter, view, now_s, queue.settings.ttft_target_s)
            if decision.outcome != "wait":
                return decision
        if len(self.where) >= self._limit:
            queue.counts[priority].shed[Shed.ROUTER_FULL] += 1
            return self._core.refused(waiter, view, Shed.ROUTER_FULL, queue.retry_after_s(priority, now_s), now_s)
        arrival = queue.arrive(waiter, now_s)
        for displaced in arrival.displaced:
            self._shed(displaced, queue, Shed.DISPLACED, now_s)
        if arrival.shed is not None:
            return self._core.refused(waiter, view, arrival.shed, arrival.retry_after_s, now_s)
        self.where[request_id] = queue
        return self._wait

    def leave(self, request_id: bytes, now_s: float) -> bool:
        """Take out a request that nobody waits for any more; False when it does not wait."""
        queue = self.where.pop(request_id, None)
        return queue is not None and queue.cancel(request_id)

    def release(self, now_s: float) -> list[tuple[bytes, Decision]]:
        """Return every waiter whose time has come, with its decision: it goes, or is refused.

        Raises what a policy raises; the waiter that it was about is among the next answers, as ``failed``.
        """
        for queue in self._queues.values():
            if not queue:
                continue
            for late in queue.expire(now_s):
                self._shed(late, queue, Shed.TIMEOUT, now_s)
            target_s = queue.settings.ttft_target_s

            def may_go(waiter: Waiter[Asked], target_s: float = target_s) -> bool:
                view = self._views.get(waiter.payload.name)
                if view is None or not view.order.replicas:
                    return False  # one may come before the deadline
                try:
                    decision = self._core.try_to_go(waiter, view, now_s, target_s)
                except Exception:
                    self.leave(waiter.request_id, now_s)
                    self._answers.append((waiter.request_id, self._failed))
                    raise
                if decision.outcome == "wait":
                    return False
                del self.where[waiter.request_id]
                self._answers.append((waiter.request_id, decision))
                return True

            queue.release(may_go, now_s, RELEASE_LIMIT)
        answers = self._answers
        self._answers = []
        return answers

    def depths(self) -> tuple[Depth, ...]:
        """Return every model's queues."""
        return tuple(
            Depth(model, name, *depth, counts)
            for model, queue in sorted(self._queues.items())
            for name, depth, counts in zip(PRIORITIES, queue.depths(), queue.counts, strict=True)
        )

    def _let_go(self, waiter: Waiter[Asked], now_s: float, target_s: float) -> Decision:
        view = self._views.get(waiter.payload.name)
        if view is None or not view.order.replicas:
            return self._core.without_replica(waiter, view, now_s)
        return self._core.try_to_go(waiter, view, now_s, target_s)

    def _shed(self, waiter: Waiter[Asked], queue: Queue[Asked], shed: Shed, now_s: float) -> None:
        """Refuse a waiter that has left its queue."""
        del self.where[waiter.request_id]
        view = self._views.get(waiter.payload.name)
        if view is None or not view.order.replicas:
            decision = self._core.without_replica(waiter, view, now_s)
        else:
            decision = self._core.refused(waiter, view, shed, queue.retry_after_s(waiter.priority, now_s), now_s)
        self._answers.append((waiter.request_id, decision))
