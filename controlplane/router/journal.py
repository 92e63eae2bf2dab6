"""A routing core that keeps a journal: every call with its arguments, and every decision (docs/replay.md).

It takes the place of ``RoutingCore`` and decides exactly as that does; without a journal it only passes calls on.
Shadow policies are set here, too, because the same topologies tell of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set

import xxhash

from controlplane.router import journal_lines as lines
from controlplane.router.journal_lines import encode
from controlplane.router.journal_settings import JournalCounts, JournalInfo, WatchedTopology
from controlplane.routing.admission.gate import Asked
from controlplane.routing.admission.settings import DEFAULT_PRIORITY
from controlplane.routing.admission.waiter import Waiter
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.fleet import ReplicaInfo, Topology
from controlplane.routing.load import Decision
from controlplane.routing.policies.base import Choice
from controlplane.routing.rates import Rates
from controlplane.routing.receipts import DEFAULT_CAPACITY
from controlplane.routing.record import Request
from controlplane.routing.shadow import Shadow, install_shadows
from controlplane.routing.view import View

_log = logging.getLogger(__name__)

#: A request is in a sampled journal when its id's hash is below the share of this.
_HASHES = 1 << 32

#: What a journal says came of a decision that raised an exception: HAProxy balanced that request by itself.
FAILED = Decision("failed")

#: Begins or ends a journal when the settings that it is given are not those that it follows.
Follow = Callable[["JournalledCore", JournalInfo | None, float], None]


class Journal:
    """Where lines go. ``share`` below 1 keeps whole receipts of that part of the requests, and nothing else."""

    def __init__(
        self,
        put: Callable[[bytes], None],
        share: float = 1.0,
        counts: Callable[[], JournalCounts | None] = lambda: None,
    ) -> None:
        self.put = put
        self.counts = counts
        self.full = share >= 1.0
        self._bound = int(share * _HASHES)

    def samples(self, request_id: bytes) -> bool:
        """Whether a sampled journal has this request; the same on every router."""
        return xxhash.xxh32_intdigest(request_id) < self._bound


class JournalledCore(RoutingCore):
    """One router's core, with a journal of its calls while there is one."""

    def __init__(
        self, *, seed: int = 0, receipt_capacity: int = DEFAULT_CAPACITY, follow: Follow | None = None
    ) -> None:
        """``follow`` is told what each topology says of the journal, before it is installed."""
        super().__init__(seed=seed, receipt_capacity=receipt_capacity)
        self._follow = follow
        #: Whether ``released`` will be asked for; and the choices of requests that waited, since the last one.
        self.keeps_choices = False
        self._choices: dict[bytes, Choice | None] = {}
        self.seed = seed
        self.journal: Journal | None = None
        self.topology: WatchedTopology | None = None
        self.shadows: dict[str, Shadow] = {}
        self.choice: Choice | None = None

    def install(self, topology: Topology, now_s: float) -> None:
        """See RoutingCore."""
        watched = _watched(topology)
        if self._follow is not None:
            self._follow(self, watched.journal, now_s)
        super().install(topology, now_s)
        self.topology = watched
        for error in install_shadows(self.shadows, watched.shadows, topology, self._installed):
            _log.warning("a shadow policy is left out: %s", error)
        journal = self.journal
        if journal is not None and journal.full:
            journal.put(encode(lines.Install(now_s, watched)))

    def decide(
        self,
        request_id: bytes,
        request: Request,
        now_s: float,
        held: Mapping[bytes, int] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Decision:
        """See RoutingCore."""
        journal = self.journal
        if journal is None:
            return super().decide(request_id, request, now_s, held, priority)
        self.choice = None
        try:
            decision = super().decide(request_id, request, now_s, held, priority)
        except Exception:  # a replay meets it too
            if journal.full:
                journal.put(encode(self.decided(request_id, request, now_s, held, priority, FAILED)))
            raise
        if journal.full:
            journal.put(encode(self.decided(request_id, request, now_s, held, priority, decision)))
        elif journal.samples(request_id):
            self._sample(journal, {request_id}, 1)
        return decision

    def decided(
        self,
        request_id: bytes,
        request: Request,
        now_s: float,
        held: Mapping[bytes, int] | None,
        priority: int,
        decision: Decision,
    ) -> lines.Decide:
        """Return the line of the decision that was just made."""
        line = lines.Decide(now_s, request_id, request, made(decision, self.choice))
        if held is not None:
            line.held = {server.decode(): tokens for server, tokens in held.items()}
        if priority != DEFAULT_PRIORITY:
            line.priority = priority
        return line

    def release(self, now_s: float) -> list[tuple[bytes, Decision]]:
        """See RoutingCore."""
        journal = self.journal
        if journal is None or not self.may_release:
            return super().release(now_s)
        released = super().release(now_s)
        if journal.full:
            journal.put(encode(self.released(released, now_s)))
        elif asked := {request_id for request_id, _ in released if journal.samples(request_id)}:
            self._sample(journal, asked, len(released))
        return released

    def released(self, released: list[tuple[bytes, Decision]], now_s: float) -> lines.Release:
        """Return the line of a release that was just made."""
        choices, self._choices = self._choices, {}
        return lines.Release(now_s, [(known, made(decision, choices.get(known))) for known, decision in released])

    def try_to_go(self, waiter: Waiter[Asked], view: View, now_s: float, target_s: float) -> Decision:
        """See RoutingCore; keeps the choice, because a release makes several."""
        decision = super().try_to_go(waiter, view, now_s, target_s)
        if decision.outcome == "go" and self.keeps_choices and waiter.request_id in self._waiters:
            self._choices[waiter.request_id] = self.choice
        return decision

    def leave(self, request_id: bytes, now_s: float) -> bool:
        """See RoutingCore."""
        journal = self.journal
        if journal is not None and journal.full:
            journal.put(encode(lines.Leave(now_s, request_id)))
        return super().leave(request_id, now_s)

    def _sample(self, journal: Journal, asked: Set[bytes], made_now: int) -> None:
        """Write the receipts of these requests, which are among the last ``made_now``."""
        last = self.counters().receipts
        for receipt in self.receipts_after(last - made_now, limit=made_now).receipts:
            if receipt.request_id in asked:
                journal.put(encode(lines.Sample(receipt)))

    def model_of(self, server: str) -> str:
        """Return a server's model; empty when there is no such server."""
        replica = self._installed.by_server.get(server)
        return "" if replica is None else replica.info.model

    def policy_of(self, model: str) -> str:
        """Return the name of a model's policy; empty when there is no such model any more."""
        known = self._installed.policies.get(model)
        return "" if known is None else known[0]

    def speeds(self) -> list[tuple[ReplicaInfo, Rates]]:
        """Return every replica with what is believed of its speed."""
        return [(replica.info, replica.rates) for replica in self._installed.by_server.values()]

    def in_flight_by_model(self) -> dict[str, list[int]]:
        """Return the requests in flight at each replica that may be chosen."""
        orders = self._installed.orders
        return {
            model: [replica.in_flight for replica in order.replicas]
            for model, order in orders.items()
            if order.replicas
        }

    def first_byte(self, heard: FirstByte, now_s: float) -> bool:
        """See RoutingCore."""
        taken = super().first_byte(heard, now_s)
        if taken and self.journal is not None:
            self._took(self.journal, lines.First(now_s, heard))
        return taken

    def finished(self, completion: Completion, now_s: float) -> bool:
        """See RoutingCore."""
        journal = self.journal
        if journal is not None and (journal.full or journal.samples(completion.request_id)):
            journal.put(encode(lines.Finished(now_s, completion)))
        return super().finished(completion, now_s)

    def reported(self, report: EngineReport, now_s: float) -> bool:
        """See RoutingCore."""
        taken = super().reported(report, now_s)
        if taken and self.journal is not None:
            self._took(self.journal, lines.Reported(now_s, report))
        return taken

    def observed(self, telemetry: Telemetry, now_s: float) -> bool:
        """See RoutingCore."""
        taken = super().observed(telemetry, now_s)
        if taken and self.journal is not None:
            self._took(self.journal, lines.Observed(now_s, telemetry))
        return taken

    def cache_cleared(self, cleared: CacheCleared, now_s: float) -> bool:
        """See RoutingCore."""
        taken = super().cache_cleared(cleared, now_s)
        if taken and self.journal is not None:
            self._took(self.journal, lines.Cleared(now_s, cleared))
        return taken

    @staticmethod
    def _took(journal: Journal, line: lines.First | lines.Reported | lines.Observed | lines.Cleared) -> None:
        """Keep the line of an event that counted. One that was ignored changed nothing, whatever is in it."""
        if journal.full:
            journal.put(encode(line))

    def reconcile(self, streams: Mapping[str, int], now_s: float) -> None:
        """See RoutingCore."""
        journal = self.journal
        if journal is not None and journal.full:
            journal.put(encode(lines.Reconcile(now_s, dict(streams))))
        super().reconcile(streams, now_s)


def made(decision: Decision, choice: Choice | None) -> lines.Made:
    """Return a decision for a line, with the choice that it came from (None: no policy was asked)."""
    line = lines.Made(decision.outcome, decision.server_name, decision.error, decision.retry_after_s)
    if choice is not None:
        candidates, scores, _, line.reason, _, terms = choice
        line.candidates = [replica.info.server for replica in candidates]
        line.scores = scores if scores is not None else [replica.in_flight for replica in candidates]
        if terms is not None:
            line.terms = terms[: len(terms) // len(candidates)]
    return line


def _watched(topology: Topology) -> WatchedTopology:
    if isinstance(topology, WatchedTopology):
        return topology
    return WatchedTopology(topology.number, topology.cluster, topology.models, topology.replicas)
