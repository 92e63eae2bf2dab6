"""session: consistent hashing of a session's key, with bounded load."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import xxhash

from controlplane.routing.load import CANDIDATES, Replica
from controlplane.routing.policies.base import SESSION, Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.least_loaded import ADAPTER_PENALTY, least_with_adapter
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: Points of the ring that one decision walks over before it takes the least loaded replica.
MAX_HOPS = 128
#: Points whose replicas a receipt shows, at most 8; a small fleet stands in them more than once.
WINDOW = 12
#: Sessions whose replicas are kept at hand; about 400 bytes each.
MAX_SESSIONS_KEPT = 16_384
#: Low bits of a point that number its seat. In one ring of 200 with 400,000 points two are that close, and in no order.
SEAT = (1 << 20) - 1
#: Added to the score of a replica that was passed over because it was full.
OVER_BOUND = 1000.0


class Seat:
    """A replica's name on the ring, and the incarnation that has it now (None: it may not be chosen)."""

    __slots__ = ("name", "number", "replica")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.replica: Replica | None = None


class Session:
    """Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016, arXiv:1608.01350).

    Each replica *name* has ``virtual_nodes`` points on a ring of xxh64; a session goes to the first point after its
    own hash whose replica may take it. Names outlive restarts, the ring has those of replicas that are away too, and
    nothing is random: a session finds its replica again after a restart of the replica, of the router, or both, and a
    replica that leaves moves its own sessions only. A replica may take a request while it then has at most
    ``max(load_floor, ceil(load_factor * (all in flight + 1) / replicas))`` in flight; with a factor of at least 1
    some replica always may.

    Reads: ``session`` of the request, requests in flight. Without a session: as ``least_loaded``.
    Score: place in the ring's order from the session's point; 1000 more for those that are full.
    Limits: load is counted in requests, not tokens; the bound costs affinity when few requests are in flight, which
    ``load_floor`` is for.
    """

    name: ClassVar[str] = "session"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "load_factor": Parameter(
            1.25,
            1.0,
            1000.0,
            "How far above the mean a replica's requests in flight may go; 1.25 is the paper's and HAProxy's "
            "(hash-balance-factor 125). 1000 is as good as no bound.",
        ),
        "load_floor": Parameter(
            4.0,
            1.0,
            65536.0,
            "Requests in flight below which the bound never applies: an engine decodes 4 as fast as 1.",
        ),
        "virtual_nodes": Parameter(
            100.0, 1.0, 1000.0, "Points of a replica on the ring; 100 (Ray Serve's) gives shares within about 10 %."
        ),
        "adapter_penalty": ADAPTER_PENALTY,
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.RANK
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = False

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._factor = values["load_factor"]
        self._floor = int(values["load_floor"])
        self._virtual_nodes = int(values["virtual_nodes"])
        self._adapter_penalty = values["adapter_penalty"]
        self._seats: dict[str, Seat] = {}
        #: session -> the first replicas after its point; of this topology only, so nothing depends on it.
        self._near: dict[bytes, list[Replica]] = {}
        # Packed, not a list: at 4,096 replicas a search would miss the cache for every number it looks at.
        self._points = array("Q")
        #: Seats by the number in the low bits of their points, and the numbers that nobody has.
        self._numbered: list[Seat] = []
        self._free: list[int] = []

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Put the names on the ring, and the replicas in their seats."""
        if names and set(names) != set(self._seats):
            self._build(names)
        self._near.clear()
        for seat in self._seats.values():
            seat.replica = None
        for replica in members:
            self._seats[replica.info.name].replica = replica

    def _build(self, names: Sequence[str]) -> None:
        """Put new names on the ring and take those that are gone off it; the others' points are not made again."""
        known = self._seats
        kept = set(names)
        gone = {known.pop(name).number for name in set(known) - kept}
        ring = self._points.tolist()
        if gone:
            ring = [point for point in ring if point & SEAT not in gone]
            self._free.extend(sorted(gone))
        added: list[int] = []
        for name in names:
            if name not in known:
                seat = self._seated(name)
                for index in range(self._virtual_nodes):
                    added.append(xxhash.xxh64_intdigest(f"{name}#{index}".encode()) & ~SEAT | seat.number)
        if added:
            ring += sorted(added)
            ring.sort()  # two sorted runs: one merge
        self._points = array("Q", ring)

    def _seated(self, name: str) -> Seat:
        number = self._free.pop() if self._free else len(self._numbered)
        seat = self._seats[name] = Seat(name, number)
        self._numbered[number : number + 1] = [seat]
        return seat

    def _owners(self, point: int, count: int) -> Iterable[Seat]:
        """Return whose the next ``count`` points of the ring are, each seat once."""
        points = self._points
        following = points[point : point + count]
        if len(following) < count:
            following += points[: count - len(following)]
        numbered = self._numbered
        return dict.fromkeys([numbered[found & SEAT] for found in following])

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        order = view.order
        bound = -int(-self._factor * (order.total + 1) // len(order.replicas))
        near = self._near.get(request.session)
        if near is None:
            near = self._find(view, request.session)
        if near and (near[0].in_flight < bound or near[0].in_flight < self._floor):
            return near, None, None, SESSION, 0, None
        if not _names_session(view, request.session):
            return self._without_session(view)
        return self._pass_over(view, request.session, near, max(bound, self._floor))

    def _find(self, view: View, session: bytes) -> list[Replica]:
        """Return the first replicas after a session's point, and keep them; none when it is no session of the view."""
        near: list[Replica] = []
        if _names_session(view, session):
            point = bisect_left(self._points, xxhash.xxh64_intdigest(session))
            near = [replica for seat in self._owners(point, WINDOW) if (replica := seat.replica) is not None][
                :CANDIDATES
            ]
        if len(self._near) >= MAX_SESSIONS_KEPT:
            self._near.clear()
        self._near[session] = near
        return near

    def _pass_over(self, view: View, session: bytes, near: list[Replica], bound: int) -> Choice:
        """Choose the first replica after the session's point that is not full; nearly always it is near."""
        free = [replica for replica in near if replica.in_flight < bound]
        full = [replica for replica in near if replica.in_flight >= bound]
        if not free:
            free, full = self._walk(session, bound)
        reason = Reason.SESSION_OVER_BOUND if full else Reason.SESSION
        if not free:  # some replica always is, but it may be further away than a decision walks
            free = view.order.least()
        shown = [replica for replica in full if replica not in free][: CANDIDATES - 1]
        free = free[: CANDIDATES - len(shown)]
        scores = [float(rank) for rank in range(len(free))] + [OVER_BOUND + rank for rank in range(len(shown))]
        return free + shown, scores, None, reason.value, len(full), None

    def _walk(self, session: bytes, bound: int) -> tuple[list[Replica], list[Replica]]:
        """Return the next replicas on the ring that are not full (at most 8), and the full ones before them."""
        point = bisect_left(self._points, xxhash.xxh64_intdigest(session))
        free: list[Replica] = []
        full: list[Replica] = []
        for seat in self._owners(point, MAX_HOPS):
            if seat.replica is not None:
                (free if seat.replica.in_flight < bound else full).append(seat.replica)
                if len(free) == CANDIDATES:
                    break
        return free, full

    def _without_session(self, view: View) -> Choice:
        if view.adapter:
            return least_with_adapter(view, self._adapter_penalty)
        candidates = view.order.least()
        scores = [float(replica.in_flight) for replica in candidates]
        return candidates, scores, None, Reason.NO_SESSION.value, 0, None


def _names_session(view: View, session: bytes) -> bool:
    """Whether a record's session is one that the model's settings accept."""
    return bool(session) and (not view.session_keys or session.partition(b"=")[0] in view.session_keys)
