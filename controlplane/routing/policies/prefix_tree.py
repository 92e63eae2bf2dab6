"""prefix_tree: the least busy owner of the longest match, else who was sent the least text; as Ray Serve LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar

from controlplane.routing.load import BLOCK_BYTES, CANDIDATES, Replica
from controlplane.routing.policies.base import (
    FEWER_OF_TWO,
    LONGEST_PREFIX,
    NO_PREFIX,
    Choice,
    Parameter,
    Reason,
    ScoreKind,
)
from controlplane.routing.policies.candidates import MAX_WEIGHED, depth_at, full_blocks
from controlplane.routing.policies.draws import Draws
from controlplane.routing.prefix_index import HASH_BYTES, parts
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: Stands for Ray's infinity: more requests than a router has in flight.
NEVER = 1e9

PREFIX_OUTWEIGHED = Reason.PREFIX_OUTWEIGHED.value


class PrefixTree:
    """``PrefixCacheAffinityRouter`` of Ray Serve LLM (python/ray/llm/_internal/serve/routing_policies/prefix_aware).

    ::

        most - least in flight > imbalanced_threshold  -> the less loaded of two that are drawn
        matched / prompt < match_rate_threshold        -> of those that were sent the least text, the least in flight
        else                                           -> of those that hold the deepest matched part, the same

    Equals: the first by name (the original: the first of its list).

    Score: bytes of text sent where that decides, else requests in flight.
    Reads: requests in flight, the prefix tree, and its own sum of the text that was new to each replica.
    Weighs: all up to 64 replicas; beyond, 64 holders, or the 64 least loaded.
    Mapped: the original matches characters in a tree that never forgets by default (``do_eviction`` is off); here full
    blocks of 4,096 bytes count, in the router's tree, which forgets as the engine does, so its matches are truer than
    the original's. The text sent never shrinks, as there. The original's queue lengths come from a cache of up to
    10 s of age; here they are exact. The tree's latency and its actor are not modelled, nor is ``max_ongoing_requests``
    (10**9 by default in Ray Serve LLM).
    """

    name: ClassVar[str] = "prefix_tree"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "imbalanced_threshold": Parameter(
            NEVER,
            0.0,
            NEVER,
            "Requests in flight that the most loaded may have above the least before two are drawn. Infinite in "
            "PrefixCacheAffinityRouter.initialize_state (prefix_aware_router.py, ray-project/ray 06c16f2f21c5), for "
            "which 1e9 stands.",
        ),
        "match_rate_threshold": Parameter(
            0.1,
            0.0,
            1.0,
            "Part of the prompt from which on its holders are chosen. 0.1: same function.",
        ),
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.WRITTEN
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._imbalance = values["imbalanced_threshold"]
        self._match_rate = values["match_rate_threshold"]
        self._draws = Draws(seed)
        self._rank: dict[Replica, int] = {}
        #: Bytes of text that were new to each replica when it got them.
        self._sent: dict[Replica, int] = {}

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Keep the sums of the replicas that stay; a new one starts at 0."""
        self._rank = {replica: number for number, replica in enumerate(members)}
        self._sent = {replica: self._sent.get(replica, 0) for replica in members}

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        replicas = view.order.replicas
        known = view.lookup(request)
        found = parts(known) if known[0] or known[2] is not None else []
        if replicas[-1].in_flight - replicas[0].in_flight > self._imbalance:
            first, second = self._draws.pair(len(replicas))
            ordered = sorted((replicas[first], replicas[second]), key=lambda replica: replica.in_flight)
            scores = [float(replica.in_flight) for replica in ordered]
            reason = FEWER_OF_TWO
        else:
            holders, depth = _deepest(view, found)
            reason = LONGEST_PREFIX
            if not depth or depth < self._match_rate * full_blocks(view):
                reason = PREFIX_OUTWEIGHED if depth else NO_PREFIX
                ordered, scores = self._least_sent(replicas)
            else:
                ordered, scores = self._least_loaded(holders)
        held = [depth_at(found, replica) for replica in ordered]
        self._sent[ordered[0]] += max(0, request.prompt_bytes - held[0] * BLOCK_BYTES)
        return ordered, scores, held, reason, 0, None

    def _least_loaded(self, holders: Sequence[Replica]) -> tuple[list[Replica], list[float]]:
        rank = self._rank
        ordered = sorted(holders, key=lambda replica: (replica.in_flight, rank[replica]))[:CANDIDATES]
        return ordered, [float(replica.in_flight) for replica in ordered]

    def _least_sent(self, replicas: Sequence[Replica]) -> tuple[list[Replica], list[float]]:
        rank, sent = self._rank, self._sent
        ordered = sorted(replicas[:MAX_WEIGHED], key=lambda replica: (sent[replica], replica.in_flight, rank[replica]))[
            :CANDIDATES
        ]
        return ordered, [float(sent[replica]) for replica in ordered]


def _deepest(view: View, found: Sequence[tuple[Mapping[Replica, int], int]]) -> tuple[Sequence[Replica], int]:
    """Return those that hold the deepest matched part and may be chosen, and its depth in blocks."""
    order = view.order
    for holders, depth in reversed(found):
        few = [replica for replica in islice(holders, MAX_WEIGHED) if replica.order is order]
        if few:
            return few, depth // HASH_BYTES
    return (), 0
