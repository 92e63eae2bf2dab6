"""prefix: where the most of the prompt is cached, unless that replica is too busy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import ClassVar

from controlplane.routing.load import CANDIDATES, Replica
from controlplane.routing.policies.base import LONGEST_PREFIX, NO_PREFIX, Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.least_loaded import ADAPTER_PENALTY, residents_of
from controlplane.routing.prefix_index import HOLDERS_WEIGHED, Match, parts
from controlplane.routing.record import Request
from controlplane.routing.view import View


class Prefix:
    """Least uncached prompt and load together.

    Score, in blocks of 4,096 bytes: ``uncached * (1 + interference * in_flight) + load_weight * in_flight``
    (+ ``adapter_penalty * load_weight`` where the request's adapter is not resident). The first term is the prefill
    still to do, dearer where others wait for it; the second is what the replica already has to do.

    A hot prefix spreads for two reasons. The load term: at hit h of n blocks a holder is left once its load exceeds
    the least loaded's by about h / load_weight. And the guard: a holder that would have more than
    ``max(imbalance_floor, imbalance_factor * mean)`` in flight is not considered at all (receipt: ``over_bound``).

    Reads: the prompt's block hashes, the router's own prefix tree (an LRU of each replica's KV size, filled by its own
    decisions), requests in flight, adapters.
    Weighs: at most 7 holders of the matched parts of the prompt, deepest first, and the least loaded up to 8 in all.
    Limits: the tree is a belief: an engine may have evicted earlier or later. Prompts share by whole blocks counted
    from ``"messages"``, and only the first 128 KiB of a body count. A last block that is not full counts
    for nothing, so a prompt of less than one block (some 1,000 tokens) goes by load alone.
    """

    name: ClassVar[str] = "prefix"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "load_weight": Parameter(
            1.0, 0.0, 1000.0, "Blocks of prefill that one request in flight counts as; a block is about 1,000 tokens."
        ),
        "interference": Parameter(
            0.3,
            0.0,
            100.0,
            "Part of a prefill's cost that each request in flight there adds; simulated: flat 0.1 to 1.",
        ),
        "imbalance_factor": Parameter(
            2.0, 1.0, 1000.0, "How far above the mean a holder's requests in flight may go for its cache's sake."
        ),
        "imbalance_floor": Parameter(8.0, 1.0, 65536.0, "Requests in flight below which the guard never applies."),
        "adapter_penalty": ADAPTER_PENALTY,
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.WRITTEN
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._load_weight = values["load_weight"]
        self._interference = values["interference"]
        self._factor = values["imbalance_factor"]
        self._floor = values["imbalance_floor"]
        self._adapter_penalty = values["adapter_penalty"] * self._load_weight

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Nothing is kept."""

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        blocks = len(request.hashes) >> 3
        known = view.lookup(request)
        least = view.order.least()
        if not known[0] and known[2] is None and not view.adapter:
            slope = self._load_weight + self._interference * blocks
            return least, [blocks + slope * replica.in_flight for replica in least], None, NO_PREFIX, 0, None
        hits: dict[Replica, int] = {}
        left_out = self._take_holders(view, least, known, hits)
        for replica in least:
            if replica not in hits and replica not in left_out:
                hits[replica] = 0
                if len(hits) == CANDIDATES:
                    break
        return self._weigh(view, blocks, hits, len(left_out))

    def _take_holders(self, view: View, least: list[Replica], known: Match, hits: dict[Replica, int]) -> list[Replica]:
        """Put into ``hits`` the holders to weigh, with the blocks they hold; return those that the guard left out.

        The least loaded replica is never left out: the bound is above the mean.
        """
        order = view.order
        bound = max(self._floor, self._factor * (order.total + 1) / len(order.replicas))
        left_out: list[Replica] = []
        for holders, depth in reversed(parts(known)):
            few: Iterable[Replica] = holders
            if len(holders) > HOLDERS_WEIGHED:
                few = [*(replica for replica in least if replica in holders), *islice(holders, HOLDERS_WEIGHED)]
            for replica in few:
                if replica in hits or replica.order is not order:
                    continue
                if replica.in_flight < bound:
                    hits[replica] = depth >> 3
                    if len(hits) == HOLDERS_WEIGHED:
                        return left_out
                elif replica not in left_out:
                    left_out.append(replica)
        if view.adapter:
            for replica in residents_of(view)[: HOLDERS_WEIGHED - len(hits)]:
                if replica not in left_out:
                    hits.setdefault(replica, 0)
        return left_out

    def _weigh(self, view: View, blocks: int, hits: dict[Replica, int], over: int) -> Choice:
        weight = self._load_weight
        interference = self._interference
        candidates = list(hits)
        held = list(hits.values())
        scores = [
            (todo := blocks - held_there) + (interference * todo + weight) * replica.in_flight
            for replica, held_there in hits.items()
        ]
        if view.adapter:
            away = self._adapter_penalty
            residents = view.residents
            scores = [s if r in residents else s + away for s, r in zip(scores, candidates, strict=True)]
        best = scores.index(min(scores))
        if best:  # the winner stands first; readers of the receipt sort the rest
            candidates[0], candidates[best] = candidates[best], candidates[0]
            scores[0], scores[best] = scores[best], scores[0]
            held[0], held[best] = held[best], held[0]
        if held[0]:
            return candidates, scores, held, LONGEST_PREFIX, over, None
        reason = Reason.PREFIX_OUTWEIGHED.value if over or any(held) else NO_PREFIX
        return candidates, scores, held, reason, over, None
