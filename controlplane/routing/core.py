"""The routing core: a topology, requests and completions in; decisions and receipts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias

from controlplane.routing.fleet import Topology
from controlplane.routing.install import Installation, install
from controlplane.routing.load import NOT_HEARD, Decision, Replica
from controlplane.routing.policies.base import Reason, ScoreKind
from controlplane.routing.policies.session import Session
from controlplane.routing.receipt import Batch, Receipt
from controlplane.routing.receipts import DEFAULT_CAPACITY, Receipts
from controlplane.routing.record import ASK_FOR_BODY, Request
from controlplane.routing.view import View
from dataplane.errors import EDGE_ERRORS

#: Requests in flight that are remembered; each takes about 350 bytes. HAProxy's own connections end before.
MAX_IN_FLIGHT = 131_072
#: Entries that leave at once when there are more: taking them one by one would search the table each time.
OVERFLOW_BATCH = 1_024
#: Seconds after which an entry whose server has fewer streams than entries is taken to have lost its log line.
ORPHAN_AGE_S = 30.0
#: Weight of the newest first-byte time in the smoothed one.
FIRST_BYTE_WEIGHT = 0.2

Octets: TypeAlias = bytes
#: A request in flight: replica, decided at, receipt number, and the view and the chain that its policy remembers.
_Entry: TypeAlias = tuple[Replica, float, int, View | None, bytes]


class Completion(NamedTuple):
    """How a request ended, as HAProxy's log tells it. Times in ms; ``first_byte_ms`` is -1 when none came."""

    request_id: Octets
    server: Octets
    status: int
    first_byte_ms: int
    total_ms: int
    bytes: int
    termination: Octets
    retries: int


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's load; ``first_byte_ms`` is -1 when none was heard."""

    server: str
    name: str
    model: str
    pool: str
    state: str
    in_flight: int
    decisions: int
    first_byte_ms: float


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened since the start."""

    topology_number: int
    decisions: int
    bodies_asked: int
    errors: int
    completions: int
    unmatched: int
    orphans: int
    in_flight: int
    receipts: int
    decisions_by_reason: dict[str, int]


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
        #: By request id, oldest first.
        self._in_flight: dict[bytes, _Entry] = {}
        #: name -> session keys in order, for each model and adapter that is routed by session.
        self.session_keys: dict[bytes, tuple[bytes, ...]] = {}
        self._reasons = [0] * len(Reason)
        self._completions = 0
        self._unmatched = 0
        self._orphans = 0
        self._errors = 0

    def install(self, topology: Topology, now_s: float) -> None:
        """Take a topology. Servers that stay keep their state; those that are gone lose it. Raises UnknownPolicy."""
        install(self._installed, topology, self._receipts.words)
        self._views = self._installed.views
        self._number = topology.number
        self.session_keys = {
            name: view.session_keys for name, view in self._views.items() if isinstance(view.policy, Session)
        }

    def decide(self, request_id: bytes, request: Request, now_s: float) -> Decision:
        """Choose, count the request as in flight, and keep a receipt."""
        view = self._views.get(request.model)
        if view is None or not request.plain or not view.order.replicas:
            return self._decide_unusual(request_id, request, view, now_s)
        return self._go(request_id, request, view, now_s)

    def _go(self, request_id: bytes, request: Request, view: View, now_s: float) -> Decision:
        policy = view.policy
        candidates, scores, held, reason, over = policy.choose(view, request)
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
        )
        prefixes = view.prefixes
        chain = prefixes.hold(view, replica) if prefixes is not None else b""
        self._reasons[reason] += 1
        return self._begin(request_id, (replica, now_s, number, view, chain))

    def _begin(self, request_id: bytes, entry: _Entry) -> Decision:
        table = self._in_flight
        if request_id in table:
            table.pop(request_id)[0].end()  # asked again: only the newest answer counts
        table[request_id] = entry
        replica = entry[0]
        if len(table) > MAX_IN_FLIGHT:
            self._overflow()
        replica.begin()
        replica.decisions += 1
        return replica.decision

    def _decide_unusual(self, request_id: bytes, request: Request, view: View | None, now_s: float) -> Decision:
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
        )
        self._reasons[Reason.PINNED] += 1
        return self._begin(request_id, (replica, now_s, number, None, b""))

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

    def finished(self, completion: Completion, now_s: float) -> bool:
        """Take one log line: the request is in flight no more, exactly once.

        Returns False for an id that is not in flight, which is only counted.
        """
        request_id, server, status, first_byte_ms, total_ms, sent, termination, retries = completion
        entry = self._in_flight.pop(request_id, None)
        if entry is None:
            self._finished_unknown(server)
            return False
        self._completions += 1
        replica, _, number, view, chain = entry
        serial = replica.serial
        if server != replica.server:  # redispatched: what is learned is of the one that answered
            answered = self._installed.by_wire.get(server)
            if answered is None:
                serial = 0
            else:
                serial = answered.serial
                if 200 <= status < 300 and first_byte_ms >= 0:
                    _learn(answered, first_byte_ms, now_s)
                    answered.sign()
                    if chain and view is not None and view.prefixes is not None:
                        view.prefixes.move(view, chain, replica, answered)
        elif 200 <= status < 300 and first_byte_ms >= 0:
            _learn(replica, first_byte_ms, now_s)
        replica.end()
        self._receipts.complete(number, serial, status, first_byte_ms, total_ms, sent, termination, retries)
        return True

    def _finished_unknown(self, server: bytes) -> None:
        self._unmatched += 1
        replica = self._installed.by_wire.get(server)
        if replica is not None and replica.base:
            replica.base -= 1
            replica.end()

    def reconcile(self, streams: Mapping[str, int], now_s: float) -> None:
        """Compare with HAProxy's own count of streams for each server (absent: 0).

        Entries older than ORPHAN_AGE_S go, oldest first, where there are more than streams: their log lines were
        lost. Streams beyond the entries (this router started late, or HAProxy balanced by itself) become the
        server's ``base``: at once the first time, later only as far as two counts in a row show them, because a
        count is older than the entries.
        """
        surplus = self._surplus(streams)
        if surplus:
            self._drop_orphans(surplus, now_s - ORPHAN_AGE_S)
        for replica in self._installed.by_server.values():
            own = replica.in_flight - replica.base
            excess = max(0, streams.get(replica.info.server, 0) - own)
            before = replica.excess
            replica.excess = excess
            base = excess if before is None else min(excess, before)
            while replica.base < base:
                replica.base += 1
                replica.begin()
            while replica.base > base:
                replica.base -= 1
                replica.end()

    def _surplus(self, streams: Mapping[str, int]) -> dict[Replica, int]:
        surplus: dict[Replica, int] = {}
        for replica in {entry[0] for entry in self._in_flight.values()}:
            more = replica.in_flight - replica.base - streams.get(replica.info.server, 0)
            if more > 0:
                surplus[replica] = more
        return surplus

    def _drop_orphans(self, surplus: dict[Replica, int], before_s: float) -> None:
        dropped = []
        for request_id, (replica, decided_s, *_) in self._in_flight.items():
            if decided_s > before_s:
                break  # the table is in the order of decisions
            if surplus.get(replica, 0) > 0:
                surplus[replica] -= 1
                dropped.append(request_id)
        for request_id in dropped:
            self._in_flight.pop(request_id)[0].end()
        self._orphans += len(dropped)

    def _overflow(self) -> None:
        for request_id in list(islice(self._in_flight, OVERFLOW_BATCH)):
            self._in_flight.pop(request_id)[0].end()
            self._orphans += 1

    def receipt(self, request_id: bytes) -> Receipt | None:
        """Return the newest receipt of a request, or None when it is gone or never was."""
        return self._receipts.find(request_id)

    def receipts_after(self, number: int, *, limit: int = 100, model: str = "") -> Batch:
        """Return the newest ``limit`` receipts after a number, oldest first, and how many were left out."""
        return self._receipts.after(number, limit, model)

    def loads(self) -> tuple[Load, ...]:
        """Return every replica's load, in the topology's order."""
        return tuple(
            Load(
                server=replica.info.server,
                name=replica.info.name,
                model=replica.info.model,
                pool=replica.info.pool,
                state=replica.info.state,
                in_flight=replica.in_flight,
                decisions=replica.decisions,
                first_byte_ms=replica.first_byte_ms,
            )
            for replica in self._installed.by_server.values()
        )

    def counters(self) -> Counters:
        """Return what happened since the start."""
        asked = self._reasons[Reason.BODY_NEEDED]
        return Counters(
            topology_number=self._number,
            decisions=sum(self._reasons) - asked,
            bodies_asked=asked,
            errors=self._errors,
            completions=self._completions,
            unmatched=self._unmatched,
            orphans=self._orphans,
            in_flight=len(self._in_flight),
            receipts=self._receipts.last,
            decisions_by_reason={
                reason.name.lower(): count for reason, count in zip(Reason, self._reasons, strict=True) if count
            },
        )


def _learn(replica: Replica, first_byte_ms: int, now_s: float) -> None:
    """Smooth the first-byte time; the caller packs the signals again."""
    known = replica.first_byte_ms
    if known == NOT_HEARD:
        replica.first_byte_ms = float(first_byte_ms)
    else:
        replica.first_byte_ms = known + FIRST_BYTE_WEIGHT * (first_byte_ms - known)
    replica.first_byte_at_s = now_s
