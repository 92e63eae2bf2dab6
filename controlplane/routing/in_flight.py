"""The requests in flight, and what is learned when something is heard of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import islice

from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.flight import NOT_YET, Flight
from controlplane.routing.install import Installation
from controlplane.routing.load import NOT_HEARD, Decision, Replica
from controlplane.routing.prefix_index import release_all
from controlplane.routing.receipts import Receipts

#: Requests in flight that are remembered; each takes about 500 bytes. HAProxy's own connections end before.
MAX_IN_FLIGHT = 131_072
#: Entries that leave at once when there are more: taking them one by one would search the table each time.
OVERFLOW_BATCH = 1_024
#: Seconds after which an entry whose server has fewer streams than entries is taken to have lost its log line.
ORPHAN_AGE_S = 30.0
#: Requests that have ended and whose engine's report may still come: reports and log lines take ways of their own.
MAX_ENDED = 4_096
#: Weight of the newest first-byte time in the smoothed one.
FIRST_BYTE_WEIGHT = 0.2
#: Tokens of one prompt or answer beyond which a report is not believed.
MAX_TOKENS = 1 << 28
#: Seconds in one engine beyond which a report is not believed.
MAX_REPORTED_S = 86_400.0
#: Requests or tokens beyond which an engine's figures are not believed.
MAX_TOTAL = 1 << 62


class InFlight:
    """The table of requests in flight, by id, oldest first; every count of every replica comes from it."""

    def __init__(self, installed: Installation, receipts: Receipts) -> None:
        self._installed = installed
        self._receipts = receipts
        self._flights: dict[bytes, Flight] = {}
        #: Those that ended a moment ago, oldest first.
        self._ended: OrderedDict[bytes, Flight] = OrderedDict()
        #: (predicted first byte in s, number, request id) at replicas that do not report theirs.
        self._silent: list[tuple[float, int, bytes]] = []
        self.completions = 0
        self.unmatched = 0
        self.orphans = 0
        self.reports = 0
        self.ignored = 0

    def __len__(self) -> int:
        return len(self._flights)

    def begin(self, request_id: bytes, flight: Flight) -> Decision:
        """Count a request at its replica."""
        table = self._flights
        if request_id in table:
            table.pop(request_id).end(flight.decided_s)  # asked again: only the newest answer counts
        table[request_id] = flight
        replica = flight.replica
        flight.begin()
        if not replica.answers:
            due_s = flight.decided_s + replica.wait_s(0)
            heappush(self._silent, (due_s, flight.number, request_id))
        if len(table) > MAX_IN_FLIGHT:
            self._overflow(flight.decided_s)
        replica.chosen = flight.number
        replica.decisions += 1
        return replica.decision

    def settle(self, now_s: float) -> None:
        """Let the prefills go that are predicted to be over, at replicas that never tell of a first byte."""
        silent = self._silent
        while silent and silent[0][0] <= now_s:
            _, number, request_id = heappop(silent)
            flight = self._flights.get(request_id)
            if flight is not None and flight.number == number and flight.waiting and not flight.replica.answers:
                flight.answer(now_s)
                flight.first_byte_s = NOT_YET

    def first_byte(self, heard: FirstByte, now_s: float) -> bool:
        """Take a middleware's word that prefill is over. False: no such request, or no such incarnation."""
        flight = self._flights.get(heard.request_id)
        replica = self._installed.by_wire.get(heard.server)
        if flight is None or replica is None:
            self.ignored += 1
            return False
        self._answered_by(flight, replica, now_s)
        replica.answers = True
        if flight.waiting:
            if flight.alone and not replica.tells:
                replica.rates.guessed_prefill(flight.queued_tokens, flight.queued_work, now_s - flight.decided_s)
            flight.answer(now_s)
        return True

    def reported(self, report: EngineReport, now_s: float) -> bool:
        """Take an engine's account of one request, also just after its end.

        False: no such request, another incarnation, impossible numbers.
        """
        request_id, server, prompt, cached, output, _, prefill_s = report
        flight = self._flights.get(request_id)
        ended = flight is None
        if flight is None:
            flight = self._ended.pop(request_id, None)
        replica = self._installed.by_wire.get(server)
        if flight is None or replica is None or not _possible(report):
            self.ignored += 1
            return False
        self.reports += 1
        if ended:
            now_s = min(now_s, flight.ended_s)
        else:
            self._answered_by(flight, replica, now_s)
            if flight.waiting:
                flight.answer(now_s)
                flight.first_byte_s = NOT_YET  # the time that it came is not known
        if prompt >= 0 and cached >= 0:
            if prefill_s > 0.0:
                replica.tells = True
                replica.rates.saw_prefill(prompt - cached, cached, prefill_s)
                if replica.order is not None and replica.rates.prefill_samples:
                    replica.order.learn(replica.rates.prefill_tokens_per_s)
            self._compare(flight, replica, cached)
        if output > 0 and flight.first_byte_s != NOT_YET:
            replica.rates.saw_decode(output, now_s - flight.first_byte_s, replica.in_flight, replica.context_tokens)
        if flight.view is not None:
            flight.view.saw_request(flight.prompt_bytes, prompt, output)
        replica.sign()
        return True

    def observed(self, telemetry: Telemetry, now_s: float) -> bool:
        """Take an engine's gauges. False: no such incarnation, or impossible numbers."""
        replica = self._installed.by_wire.get(telemetry.server)
        counts = (telemetry.running, telemetry.waiting, *telemetry[4:])
        if replica is None or not 0.0 <= telemetry.kv_use <= 1.0 or not all(0 <= n < MAX_TOTAL for n in counts):
            self.ignored += 1
            return False
        if telemetry.kv_capacity_tokens != replica.told_capacity_tokens:
            replica.told_capacity_tokens = telemetry.kv_capacity_tokens
            replica.size()
        replica.telemetry = telemetry
        replica.telemetry_at_s = now_s
        replica.sign()
        return True

    def cache_cleared(self, cleared: CacheCleared) -> bool:
        """Forget what a replica is taken to cache. False: no such incarnation."""
        replica = self._installed.by_wire.get(cleared.server)
        if replica is None:
            self.ignored += 1
            return False
        release_all(replica)
        return True

    def finished(self, completion: Completion, now_s: float) -> bool:
        """Take one log line: the request is in flight no more, exactly once. False: it was not, which is counted."""
        request_id, server, status, first_byte_ms, total_ms, sent, termination, retries = completion
        flight = self._flights.pop(request_id, None)
        if flight is None:
            self._finished_unknown(server)
            return False
        self.completions += 1
        replica = flight.replica
        serial = replica.serial
        good = 200 <= status < 300 and first_byte_ms >= 0
        if server != replica.server:  # redispatched: what is learned is of the one that answered
            answered = self._installed.by_wire.get(server)
            serial = answered.serial if answered is not None else 0
            if answered is not None and good:
                _learn(answered, first_byte_ms, now_s)
                answered.sign()
                _move_chain(flight, answered)
        elif good:
            _learn(replica, first_byte_ms, now_s)
            if flight.waiting and flight.alone and replica.answers and not replica.tells:
                replica.rates.guessed_prefill(flight.queued_tokens, flight.queued_work, first_byte_ms / 1000.0)
        flight.end(now_s)
        flight.ended_s = now_s
        ended = self._ended
        ended[request_id] = flight
        if len(ended) > MAX_ENDED:
            ended.popitem(last=False)  # a plain dict would look through all that left before
        self._receipts.complete(flight.number, serial, status, first_byte_ms, total_ms, sent, termination, retries)
        return True

    def _finished_unknown(self, server: bytes) -> None:
        self.unmatched += 1
        replica = self._installed.by_wire.get(server)
        if replica is not None and replica.base:
            replica.base -= 1
            replica.end()

    def _answered_by(self, flight: Flight, replica: Replica, now_s: float) -> None:
        """Count a redispatched request where it really is."""
        if flight.replica is not replica:
            _move_chain(flight, replica)
            flight.move(replica, now_s)
            flight.predicted_cached = -1

    def _compare(self, flight: Flight, replica: Replica, cached: int) -> None:
        predicted = flight.predicted_cached
        if predicted < 0 or flight.replica is not replica:
            return
        replica.compare_cached(predicted, cached)
        if flight.view is not None:
            flight.view.predicted_cached_tokens += predicted
            flight.view.reported_cached_tokens += cached
        flight.predicted_cached = -1  # a second report of the same request tells nothing new

    def reconcile(self, streams: Mapping[str, int], now_s: float) -> None:
        """Compare with HAProxy's own count of streams for each server (absent: 0).

        Entries older than ORPHAN_AGE_S go, oldest first, where there are more than streams: their log lines were
        lost. Streams beyond the entries (this router started late, or HAProxy balanced by itself) become the
        server's ``base``: at once the first time, later only as far as two counts in a row show them, because a
        count is older than the entries.
        """
        surplus = self._surplus(streams)
        if surplus:
            self._drop_orphans(surplus, now_s)
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
        for replica in dict.fromkeys(flight.replica for flight in self._flights.values()):
            more = replica.in_flight - replica.base - streams.get(replica.info.server, 0)
            if more > 0:
                surplus[replica] = more
        return surplus

    def _drop_orphans(self, surplus: dict[Replica, int], now_s: float) -> None:
        dropped = []
        for request_id, flight in self._flights.items():
            if flight.decided_s > now_s - ORPHAN_AGE_S:
                break  # the table is in the order of decisions
            if surplus.get(flight.replica, 0) > 0:
                surplus[flight.replica] -= 1
                dropped.append(request_id)
        for request_id in dropped:
            self._flights.pop(request_id).end(now_s)
        self.orphans += len(dropped)

    def _overflow(self, now_s: float) -> None:
        for request_id in list(islice(self._flights, OVERFLOW_BATCH)):
            self._flights.pop(request_id).end(now_s)
            self.orphans += 1


def _possible(report: EngineReport) -> bool:
    """Return whether an engine that works could tell this."""
    _, _, prompt, cached, output, queue_s, prefill_s = report
    return (
        -1 <= cached <= max(prompt, -1) < MAX_TOKENS
        and -1 <= output < MAX_TOKENS
        and (queue_s == -1.0 or 0.0 <= queue_s <= MAX_REPORTED_S)
        and (prefill_s == -1.0 or 0.0 <= prefill_s <= MAX_REPORTED_S)
    )


def _move_chain(flight: Flight, answered: Replica) -> None:
    if flight.chain and flight.view is not None and flight.view.keeps_prefixes:
        flight.view.move(flight.chain, flight.replica, answered)
        flight.chain = b""


def _learn(replica: Replica, first_byte_ms: int, now_s: float) -> None:
    """Smooth the first-byte time; the caller packs the signals again."""
    known = replica.first_byte_ms
    if known == NOT_HEARD:
        replica.first_byte_ms = float(first_byte_ms)
    else:
        replica.first_byte_ms = known + FIRST_BYTE_WEIGHT * (first_byte_ms - known)
    replica.first_byte_at_s = now_s
