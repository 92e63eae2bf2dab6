"""cache_aware: the owner of the longest known beginning, or the least loaded; as vllm-router and SGLang's gateway."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

from controlplane.routing.load import CANDIDATES, Replica
from controlplane.routing.policies.base import (
    LEAST_IN_FLIGHT,
    LONGEST_PREFIX,
    NO_PREFIX,
    SESSION,
    Choice,
    Parameter,
    Reason,
    ScoreKind,
)
from controlplane.routing.policies.candidates import MAX_WEIGHED, depth_at, full_blocks
from controlplane.routing.prefix_index import HASH_BYTES, parts
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: Sessions that are remembered, the least recently used leaving first; about 300 bytes each.
MAX_SESSIONS = 65_536

PREFIX_OUTWEIGHED = Reason.PREFIX_OUTWEIGHED.value


class CacheAware:
    """Thresholds on load, then on the part of the prompt that is known (vllm-project/router, sgl-project/sglang).

    Rules, in order, as ``src/policies/cache_aware.rs`` of the router has them::

        most - least > balance_abs_threshold and most > balance_rel_threshold * least    -> least in flight
        the session is known                                                             -> its replica
        matched / prompt > cache_threshold                                               -> owner of the match
        else                                                                             -> least in flight

    The owner is the replica that first brought the deepest matched part; of equally loaded replicas the first by name
    is taken (the original: the first that was registered). Both are part of how the original behaves.

    Score: full blocks that are not cached where the match or the session decides, else requests in flight.
    Reads: requests in flight of the most and the least loaded, the prefix tree, the session.
    Mapped: the original matches characters (of the text, or token ids) in a tree of its own, bounded by characters per
    replica every one or two minutes; here blocks of 4,096 bytes count, in the tree that the router keeps, which evicts
    as the engine does. Prompts of less than a block never match. With more than 64 equally idle replicas, 64 are looked
    at for the first by name; everything else is exact at any number. Adapters are not told apart from models.
    """

    name: ClassVar[str] = "cache_aware"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "cache_threshold": Parameter(
            0.3,
            0.0,
            1.0,
            "Part of the prompt that must be known for its owner to be chosen. 0.3: command line of vllm-router "
            "(py_src/vllm_router/router_args.py, 1700eefa945b) and of SGLang's gateway (sgl-model-gateway/bindings/"
            "python/src/sglang_router/router_args.py, 05e589ad6f75); their libraries' CacheAwareConfig has 0.5 "
            "(src/policies/mod.rs, 2f2db0d9a6d0; sgl-model-gateway/src/policies/mod.rs, 01f6c92a0ae8).",
        ),
        "balance_abs_threshold": Parameter(
            64.0,
            0.0,
            1e9,
            "Requests in flight that the most loaded may have above the least before load alone decides. 64: both "
            "command lines; 32: both libraries (same files).",
        ),
        "balance_rel_threshold": Parameter(
            1.5,
            0.0,
            1e9,
            "How many times the least the most loaded must have as well. 1.5: both command lines; 1.1: both libraries "
            "(same files).",
        ),
        "session_ttl_s": Parameter(
            3600.0,
            0.0,
            1e9,
            "Seconds after which a session that was not heard of is forgotten; 0: sessions are not read, as in "
            "SGLang's gateway. 3600: SESSION_ENTRY_TTL_SECS of vllm-router (src/policies/cache_aware.rs, "
            "16917f49522f).",
        ),
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.IN_FLIGHT
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._threshold = values["cache_threshold"]
        self._most_above = values["balance_abs_threshold"]
        self._times = values["balance_rel_threshold"]
        self._session_ttl_s = values["session_ttl_s"]
        self._rank: dict[Replica, int] = {}
        #: (view's name, session) -> replica, and when it was last heard of.
        self._sessions: OrderedDict[tuple[str, bytes], tuple[Replica, float]] = OrderedDict()

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Number the replicas by name, and forget the sessions of those that are gone."""
        self._rank = {replica: number for number, replica in enumerate(members)}
        gone = [key for key, (replica, _) in self._sessions.items() if replica not in self._rank]
        for key in gone:
            del self._sessions[key]

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        replicas = view.order.replicas
        known = view.lookup(request)
        found = parts(known) if known[0] or known[2] is not None else []
        least, most = replicas[0].in_flight, replicas[-1].in_flight
        owner: Replica | None = None
        reason = PREFIX_OUTWEIGHED if found else LEAST_IN_FLIGHT
        if most - least <= self._most_above or most <= self._times * least:
            owner = self._of_session(view, request, now_s)
            reason = SESSION
            if owner is None:
                owner = self._of_match(view, found)
                reason = LONGEST_PREFIX if owner else PREFIX_OUTWEIGHED if found else NO_PREFIX
        winner = owner or self._idlest(view)
        if request.session and self._session_ttl_s:
            self._remember(view, request.session, winner, now_s)
        shown = [winner, *(replica for replica in replicas[:CANDIDATES] if replica is not winner)][:CANDIDATES]
        held = [depth_at(found, replica) for replica in shown]
        if owner is None:
            return shown, None, held, reason, 0, None
        total = full_blocks(view)
        scores = [float(total - blocks) for blocks in held]
        return shown, scores, held, reason, 0, None

    def _of_match(self, view: View, found: Sequence[tuple[Mapping[Replica, int], int]]) -> Replica | None:
        """Return who first brought the deepest matched part, when it is enough of the prompt."""
        if not found:
            return None
        holders, depth = found[-1]
        if depth // HASH_BYTES <= self._threshold * full_blocks(view):
            return None
        order = view.order
        return next((replica for replica in holders if replica.order is order), None)

    def _idlest(self, view: View) -> Replica:
        """Return the first by name of those that have the fewest in flight."""
        order = view.order
        equals = order.ends[order.replicas[0].in_flight]
        return min(order.replicas[: min(equals, MAX_WEIGHED)], key=self._rank.__getitem__)

    def _of_session(self, view: View, request: Request, now_s: float) -> Replica | None:
        if not request.session or not self._session_ttl_s:
            return None
        entry = self._sessions.get((view.adapter or view.model, request.session))
        if entry is None or now_s - entry[1] > self._session_ttl_s or entry[0].order is not view.order:
            return None
        return entry[0]

    def _remember(self, view: View, session: bytes, replica: Replica, now_s: float) -> None:
        key = (view.adapter or view.model, session)
        self._sessions[key] = (replica, now_s)
        self._sessions.move_to_end(key)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
