"""weighted_blend: queue, KV cache and prefix, each from 0 to 1, added with weights; llm-d's router without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from controlplane.routing.load import Replica
from controlplane.routing.policies.base import LONGEST_PREFIX, NO_PREFIX, Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.candidates import best_first, blocks_of, cached_tokens, lowest, weighed
from controlplane.routing.record import Request
from controlplane.routing.view import View

PREFIX_OUTWEIGHED = Reason.PREFIX_OUTWEIGHED.value

SOURCE = "llm-d-router's configuration when none is given (pkg/epp/config/loader/defaults.go, 0b59e4edb532)"


class WeightedBlend:
    """Lowest weighted loss, as ``queue-scorer``, ``kv-cache-utilization-scorer`` and ``prefix-cache-scorer`` make it.

    Score (the original maximises 1 - loss, which is the same)::

        queue_weight  * (waiting - fewest waiting) / (most waiting - fewest waiting)      0 when all have as many
      + kv_weight     * part of the KV cache in use
      + prefix_weight * part of the prompt that is not cached

    Equals take turns by name.

    Reads: requests without a first byte, KV tokens against the cache's size (0 when it is not known), the prefix tree
    or, for a ``precise`` model, the engines' own events.
    Weighs: all up to 64 replicas; beyond, at most 32 holders and the least loaded by requests, 64 in all.
    Mapped: the original reads waiting requests and KV use from the engines' metrics, some tens of milliseconds old, and
    an engine counts a prompt that it prefills as running; here both are the router's own exact counts, and a request
    waits until its first byte. Blocks as in ``sticky_until_saturated``.
    """

    name: ClassVar[str] = "weighted_blend"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "queue_weight": Parameter(2.0, 0.0, 1e6, f"Weight of waiting requests. 2: {SOURCE}."),
        "kv_weight": Parameter(2.0, 0.0, 1e6, f"Weight of the KV cache's use. 2: {SOURCE}."),
        "prefix_weight": Parameter(3.0, 0.0, 1e6, f"Weight of the prompt's uncached part. 3: {SOURCE}."),
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.WRITTEN
    terms: ClassVar[tuple[str, ...]] = ("queue_loss", "kv_loss", "prefix_loss")
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._queue_weight = values["queue_weight"]
        self._kv_weight = values["kv_weight"]
        self._prefix_weight = values["prefix_weight"]
        self._turn = 0
        self._members: Sequence[Replica] = ()

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Take who may be chosen."""
        self._members = members

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        cached, total = cached_tokens(view, request, view.lookup(request))
        replicas = weighed(view, self._members, cached)
        waiting = [replica.waiting for replica in replicas]
        fewest = min(waiting)
        queue_slope = self._queue_weight / ((max(waiting) - fewest) or 1)
        kv_weight = self._kv_weight
        part = self._prefix_weight / (total or 1.0)
        losses = [
            (
                queue_slope * (replica.waiting - fewest),
                kv_weight * min(1.0, replica.kv_tokens / (replica.kv_capacity_tokens or float("inf"))),
                self._prefix_weight - part * cached.get(replica, 0.0),
            )
            for replica in replicas
        ]
        scores = [queue + kv + prefix for queue, kv, prefix in losses]
        equals = lowest(scores)
        winner = equals[0]
        if len(equals) > 1:
            winner = equals[self._turn % len(equals)]
            self._turn = (self._turn % len(equals) + 1) % len(equals)
        places = best_first(scores, winner)
        reason = LONGEST_PREFIX if replicas[winner] in cached else PREFIX_OUTWEIGHED if cached else NO_PREFIX
        return (
            [replicas[place] for place in places],
            [scores[place] for place in places],
            [blocks_of(view, cached.get(replicas[place], 0.0)) for place in places],
            reason,
            0,
            [loss for place in places for loss in losses[place]],
        )
