"""The routing core: a topology, requests and events in; decisions and receipts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controlplane.routing.admission.counts import Shed
from controlplane.routing.admission.gate import Asked, Depth, Gate
from controlplane.routing.admission.settings import DEFAULT_PRIORITY
from controlplane.routing.admission.waiter import Waiter
from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.figures import CachePrediction, Counters, Load, load_of
from controlplane.routing.fleet import Topology
from controlplane.routing.flight import Flight
from controlplane.routing.in_flight import InFlight
from controlplane.routing.install import Installation, install
from controlplane.routing.load import BLOCK_BYTES, Decision, Replica
from controlplane.routing.policies.base import Choice, Reason, ScoreKind
from controlplane.routing.policies.session import Session
from controlplane.routing.receipt import Batch, Receipt
from controlplane.routing.receipts import DEFAULT_CAPACITY, Receipts
from controlplane.routing.record import ASK_FOR_BODY, GENERATING_KINDS, Request
from controlplane.routing.shadow import Shadow
from controlplane.routing.view import View, whole_prompt_bytes
from dataplane.errors import EDGE_ERRORS


class RoutingCore:
    """One router's whole state. Not thread-safe; nothing in it waits.

    ``now_s`` is in seconds since 1970 everywhere and may step back: only ages are made from it.
    """

    def __init__(self, *, seed: int = 0, receipt_capacity: int = DEFAULT_CAPACITY) -> None:
        errors = ("", *sorted(EDGE_ERRORS))
        self._receipts = Receipts(receipt_capacity, errors)
        self._refusals = {code: Decision("error", error=code) for code in errors if code}
        self._ask = Decision("more")
        self._installed = Installation(seed)
        self._views: dict[bytes, View] = self._installed.views
        self._number = 0
        self._in_flight = InFlight(self._installed, self._receipts)
        #: name -> session keys in order, for each model and adapter that is routed by session.
        self.session_keys: dict[bytes, tuple[bytes, ...]] = {}
        self._reasons = [0] * len(Reason)
        self._errors = 0
        self._wait = Decision("wait")
        #: By Retry-After, of which there are MAX_RETRY_AFTER_S.
        self._sheds: dict[int, Decision] = {}
        self._gate = Gate(self)
        self._waiters = self._gate.where
        #: What the policy that was asked last chose; and the shadow policies, by model. They change no decision.
        self.choice: Choice | None = None
        self.shadows: dict[str, Shadow] = {}

    def install(self, topology: Topology, now_s: float) -> None:
        """Take a topology. Servers that stay keep their state; those that are gone lose it. Raises UnknownPolicy."""
        install(self._installed, topology, self._receipts.words)
        self._views = self._installed.views
        self._number = topology.number
        self.session_keys = {
            name: view.session_keys for name, view in self._views.items() if isinstance(view.policy, Session)
        }
        self._gate.install(((model.name, model.admission) for model in topology.models), self._views, now_s)

    def decide(
        self,
        request_id: bytes,
        request: Request,
        now_s: float,
        held: Mapping[bytes, int] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Decision:
        """Choose, count the request as in flight, and keep a receipt.

        ``held`` are the prompt's cached tokens by server, when they are known exactly; else they are predicted.
        ``wait``: the model is saturated; ``release`` tells of this request later, unless it is told to ``leave``.
        """
        view = self._views.get(request.model)
        if view is None or not request.plain or not view.order.replicas:
            return self._decide_unusual(request_id, request, view, now_s, priority)
        if view.queue is not None:
            return self._gate.enter(request_id, request, view, held, priority, now_s)
        return self._go(request_id, request, view, now_s, held)

    def release(self, now_s: float) -> list[tuple[bytes, Decision]]:
        """Return the waiting requests whose time has come: room was made for them, or their deadline passed."""
        return self._gate.release(now_s)

    def leave(self, request_id: bytes, now_s: float) -> bool:
        """Forget a waiting request whose client is gone; False when it does not wait."""
        return self._gate.leave(request_id, now_s)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._gate)

    @property
    def may_release(self) -> bool:
        """Whether ``release`` may have something to tell, now or later."""
        return self._gate.pending

    def admissions(self) -> tuple[Depth, ...]:
        """Return the queues of every model that has admission, by priority."""
        return self._gate.depths()

    def try_to_go(self, waiter: Waiter[Asked], view: View, now_s: float, target_s: float) -> Decision:
        """See the gate's Core."""
        asked = waiter.payload
        decision = self._go(waiter.request_id, asked.request, view, now_s, asked.held, target_s)
        if decision is not self._wait and now_s > waiter.arrived_s:
            self._receipts.waited(self._receipts.last, now_s - waiter.arrived_s)
        return decision

    def refused(
        self, waiter: Waiter[Asked], view: View | None, shed: Shed, retry_after_s: int, now_s: float
    ) -> Decision:
        """See the gate's Core."""
        decision = self._sheds.get(retry_after_s)
        if decision is None:
            decision = self._sheds[retry_after_s] = Decision("shed", retry_after_s=retry_after_s)
        reason = Reason[f"SHED_{shed.name}"]
        label = view.label if view is not None else 0
        request = waiter.payload.request
        number = self._receipts.refuse(waiter.request_id, request, now_s, self._number, label, decision, reason)
        self._receipts.waited(number, now_s - waiter.arrived_s)
        self._reasons[reason] += 1
        return decision

    def without_replica(self, waiter: Waiter[Asked], view: View | None, now_s: float) -> Decision:
        """See the gate's Core."""
        code = "no_replica_available" if view is not None else "model_not_found"
        decision = self._refuse(waiter.request_id, waiter.payload.request, view, code, now_s)
        self._receipts.waited(self._receipts.last, now_s - waiter.arrived_s)
        return decision

    def _go(
        self,
        request_id: bytes,
        request: Request,
        view: View,
        now_s: float,
        exact: Mapping[bytes, int] | None = None,
        target_s: float = 0.0,
    ) -> Decision:
        """Choose and count; ``wait`` and no trace when ``target_s`` is not 0 and the model is saturated for this."""
        self._in_flight.settle(now_s)
        policy = view.policy
        view.known = None
        view.predicted = -1
        view.held = None
        if exact is not None:
            by_wire = self._installed.by_wire
            view.held = {by_wire[server]: tokens for server, tokens in exact.items() if server in by_wire}
        candidates, scores, held, reason, over, terms = choice = self.choice = policy.choose(view, request, now_s)
        if target_s and self._saturated(view, request, candidates[0], held, target_s):
            view.known = None
            return self._wait
        if self.shadows and (shadow := self.shadows.get(view.model)) is not None:
            shadow.watch(view, request, choice, now_s)
        replica = candidates[0]
        resident = 0
        if view.adapter:
            residents = view.residents
            for place, candidate in enumerate(candidates):
                if candidate in residents:
                    resident |= 1 << place
            view.served_by(replica)
        number = self._receipts.write(
            request_id,
            request,
            now_s,
            self._number,
            view.label,
            policy.score_kind,
            candidates,
            scores,
            held,
            reason,
            over,
            resident,
            terms,
        )
        flight = Flight(replica, now_s, number, view)
        flight.prompt_bytes = prompt_bytes = whole_prompt_bytes(request)
        flight.prompt_tokens = prompt = view.tokens(prompt_bytes)
        flight.context_tokens = prompt
        if request.kind in GENERATING_KINDS:
            flight.context_tokens += view.expected_output(request.max_tokens)
        cached = view.predicted
        if cached < 0 and held is not None:
            cached = min(int(held[0] * BLOCK_BYTES / view.bytes_per_token), prompt)
        flight.predicted_cached = cached
        cached = max(cached, 0)
        flight.queued_tokens = prompt - cached
        flight.queued_work = replica.rates.work(prompt - cached, cached)
        flight.kv_tokens = flight.context_tokens - cached
        if view.keeps_prefixes:
            flight.chain = view.hold(replica)
        self._reasons[reason] += 1
        return self._in_flight.begin(request_id, flight)

    @staticmethod
    def _saturated(view: View, request: Request, replica: Replica, held: Sequence[int] | None, target_s: float) -> bool:
        """Return whether the first byte would come later than the target, and something waits there already.

        Where nothing waits for prefill, waiting here would make nothing faster: that one goes, however long it takes.
        """
        if not replica.waiting:
            return False
        prompt = view.tokens(whole_prompt_bytes(request))
        cached = view.predicted
        if cached < 0:
            cached = min(int(held[0] * BLOCK_BYTES / view.bytes_per_token), prompt) if held is not None else 0
        return replica.wait_s(replica.rates.work(prompt - cached, cached)) > target_s

    def _decide_unusual(
        self, request_id: bytes, request: Request, view: View | None, now_s: float, priority: int
    ) -> Decision:
        """Everything but a plain request for a model that has replicas."""
        error = request.error
        if error and error != ASK_FOR_BODY:
            return self._refuse(request_id, request, view, error, now_s)
        if request.pin:
            return self._decide_pinned(request_id, request, now_s)
        if error == ASK_FOR_BODY:
            return self._refuse(request_id, request, None, ASK_FOR_BODY, now_s)
        if view is None and not request.model and request.missing != "response_not_found":
            # A name that HAProxy did not see may be an adapter's: then the body is asked for.
            view = self._installed.only if request.missing != ASK_FOR_BODY or len(self._views) == 1 else None
        if view is None:
            code = "model_not_found" if request.model else request.missing
            if not self._views:
                code = "no_replica_available"
            return self._refuse(request_id, request, None, code, now_s)
        if not view.order.replicas:
            return self._refuse(request_id, request, view, "no_replica_available", now_s)
        if view.queue is not None:
            return self._gate.enter(request_id, request, view, None, priority, now_s)
        return self._go(request_id, request, view, now_s)

    def _decide_pinned(self, request_id: bytes, request: Request, now_s: float) -> Decision:
        replica = self._installed.pins.get(request.pin)
        if replica is None:
            return self._refuse(request_id, request, None, "response_not_found", now_s)
        number = self._receipts.write(
            request_id,
            request,
            now_s,
            self._number,
            self._installed.pinned_labels[replica.info.model],
            ScoreKind.RANK,
            [replica],
            None,
            None,
            Reason.PINNED.value,
            0,
            0,
            None,
        )
        self._reasons[Reason.PINNED] += 1
        return self._in_flight.begin(request_id, Flight(replica, now_s, number, None))

    def _refuse(self, request_id: bytes, request: Request, view: View | None, code: str, now_s: float) -> Decision:
        decision = self._ask if code == ASK_FOR_BODY else self._refusals[code]
        label = view.label if view is not None else 0
        self._receipts.refuse(request_id, request, now_s, self._number, label, decision)
        if decision is self._ask:
            self._reasons[Reason.BODY_NEEDED] += 1
        else:
            self._reasons[Reason.REFUSED] += 1
            self._errors += 1
        return decision

    def first_byte(self, heard: FirstByte, now_s: float) -> bool:
        """Take a middleware's word that a request's prefill is over; False when it concerns nothing known."""
        return self._in_flight.first_byte(heard, now_s)

    def finished(self, completion: Completion, now_s: float) -> bool:
        """Take one log line: the request is in flight no more; False when it was not."""
        if self._waiters and self._gate.leave(completion.request_id, now_s):
            return False  # HAProxy gave up the wait: the client left, or it balanced by itself
        return self._in_flight.finished(completion, now_s)

    def reported(self, report: EngineReport, now_s: float) -> bool:
        """Take an engine's account of one request; False when it concerns nothing known or is impossible."""
        return self._in_flight.reported(report, now_s)

    def observed(self, telemetry: Telemetry, now_s: float) -> bool:
        """Take an engine's gauges; False when it is not known or they are impossible."""
        return self._in_flight.observed(telemetry, now_s)

    def cache_cleared(self, cleared: CacheCleared, now_s: float) -> bool:
        """Forget what a replica is taken to cache; False when it is not known."""
        return self._in_flight.cache_cleared(cleared)

    def reconcile(self, streams: Mapping[str, int], now_s: float) -> None:
        """Compare with HAProxy's own count of streams for each server (absent: 0)."""
        self._in_flight.reconcile(streams, now_s)

    def receipt(self, request_id: bytes) -> Receipt | None:
        """Return the newest receipt of a request, or None when it is gone or never was."""
        return self._receipts.find(request_id)

    def receipts_after(self, number: int, *, limit: int = 100, model: str = "") -> Batch:
        """Return the newest ``limit`` receipts after a number, oldest first, and how many were left out."""
        return self._receipts.after(number, limit, model)

    def loads(self, now_s: float = 0.0) -> tuple[Load, ...]:
        """Return every replica's load at a time, in the topology's order."""
        return tuple(load_of(replica, now_s) for replica in self._installed.by_server.values())

    def cache_predictions(self) -> tuple[CachePrediction, ...]:
        """Return how good predictions of cached tokens were, for each model and adapter."""
        return tuple(
            CachePrediction(view.model, view.adapter, view.predicted_cached_tokens, view.reported_cached_tokens)
            for view in self._views.values()
        )

    def counters(self) -> Counters:
        """Return what happened since the start."""
        asked = self._reasons[Reason.BODY_NEEDED]
        return Counters(
            topology_number=self._number,
            decisions=sum(self._reasons) - asked,
            bodies_asked=asked,
            errors=self._errors,
            completions=self._in_flight.completions,
            unmatched=self._in_flight.unmatched,
            orphans=self._in_flight.orphans,
            in_flight=len(self._in_flight),
            receipts=self._receipts.last,
            decisions_by_reason={
                reason.name.lower(): count for reason, count in zip(Reason, self._reasons, strict=True) if count
            },
            reports=self._in_flight.reports,
            events_ignored=self._in_flight.ignored,
        )
