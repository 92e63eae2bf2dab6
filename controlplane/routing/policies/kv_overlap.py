"""kv_overlap: fewest blocks to prefill and to keep; as the KV router of NVIDIA Dynamo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import ClassVar

from controlplane.routing.load import BLOCK_BYTES, Replica
from controlplane.routing.policies.active_blocks import ActiveBlocks, chained
from controlplane.routing.policies.base import Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.candidates import best_first, blocks_of, cached_tokens, full_blocks, lowest, weighed
from controlplane.routing.policies.draws import Draws
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: Tokens of a block as scores count them: Dynamo's usual KV block size. It scales all terms alike.
BLOCK_TOKENS = 16.0

LOWEST_COST = Reason.LOWEST_COST.value
LOWEST_COST_WITH_CACHE = Reason.LOWEST_COST_WITH_CACHE.value


class KvOverlap:
    """Lowest cost, as ``DefaultWorkerSelector`` of ai-dynamo/dynamo has it (lib/kv-router/src/scheduling/selector).

    Score, in blocks of 16 tokens::

        prefill  = prefill_load_scale * max(0, queued + prompt - credit * cached)
        decode   = distinct prompt blocks of the requests there, and of this one
        requests = decode_active_request_weight * requests there
        credit   = overlap_score_credit / (1 + overlap_score_credit_decay * (queued - least queued) / prompt)

    Queued are the uncached prompt tokens of requests without a first byte. Equals are drawn from the seed. With a
    temperature above 0 the winner is drawn with probability exp(-(score - least) / (most - least) / temperature).

    Reads: queued tokens, the prefix tree or, for a ``precise`` model, the engines' own events; requests in flight.
    Weighs: all up to 64 replicas; beyond, at most 32 holders and the least loaded by requests, 64 in all.
    Mapped: Dynamo knows caches from KV events, in blocks of the engine's size; here blocks of 4,096 bytes count, full
    ones only, from the router's own tree unless the model is ``precise``. Which prompts are active is followed exactly
    up to the order in which requests end (see ``ActiveBlocks``); output is not counted, as by default there. Cache on
    host and disk, shared caches, taints and the queue in front of the router (``router_queue_threshold``) are left out.
    """

    name: ClassVar[str] = "kv_overlap"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "overlap_score_credit": Parameter(
            1.0,
            0.0,
            1.0,
            "Part of a cached block that is taken off the prefill. 1.0: KvRouterConfig "
            "(lib/kv-router/src/scheduling/config.rs, 0243c51bb6e8).",
        ),
        "overlap_score_credit_decay": Parameter(
            0.0,
            0.0,
            1e6,
            "How fast the credit fades where more is queued than at the least busy replica. 0.0: KvRouterConfig "
            "(lib/kv-router/src/scheduling/config.rs; used in selector/default.rs, a4bdb9bfa1ee).",
        ),
        "prefill_load_scale": Parameter(
            1.0,
            0.0,
            1e6,
            "Weight of prefill against decode; before 1.0 of Dynamo it was called overlap_score_weight. 1.0: "
            "default_prefill_load_scale (config.rs, 0243c51bb6e8).",
        ),
        "decode_active_request_weight": Parameter(
            0.0,
            0.0,
            1e6,
            "Blocks that one request there counts as. 0.0: KvRouterConfig (config.rs; used in selector/default.rs, "
            "a4bdb9bfa1ee).",
        ),
        "router_temperature": Parameter(
            0.0,
            0.0,
            1e6,
            "Temperature of the draw; 0: the lowest score wins. 0.0: KvRouterConfig (config.rs, 0243c51bb6e8).",
        ),
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.WRITTEN
    terms: ClassVar[tuple[str, ...]] = ("prefill_blocks", "decode_blocks", "request_blocks")
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._credit = values["overlap_score_credit"]
        self._decay = values["overlap_score_credit_decay"]
        self._scale = values["prefill_load_scale"]
        self._request_weight = values["decode_active_request_weight"]
        self._temperature = values["router_temperature"]
        self._draws = Draws(seed)
        self._members: Sequence[Replica] = ()
        self._active: dict[Replica, ActiveBlocks] = {}

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Take who may be chosen; what is active at those that stay is kept."""
        self._members = members
        known = self._active
        self._active = {replica: known.get(replica) or ActiveBlocks() for replica in members}

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        known = view.lookup(request)
        cached, _ = cached_tokens(view, request, known)
        replicas = weighed(view, self._members, cached)
        keys = chained(view.chain) if full_blocks(view) else []
        prefill, decode, scores = self._score(replicas, cached, keys, request.prompt_bytes, view.bytes_per_token)
        winner = self._pick(scores)
        chosen = replicas[winner]
        self._active[chosen].add(keys, max(0, request.prompt_bytes - len(keys) * BLOCK_BYTES))
        places = best_first(scores, winner)
        weight = self._request_weight
        return (
            [replicas[place] for place in places],
            [scores[place] for place in places],
            [blocks_of(view, cached.get(replicas[place], 0.0)) for place in places],
            LOWEST_COST_WITH_CACHE if chosen in cached else LOWEST_COST,
            0,
            [term for place in places for term in (prefill[place], decode[place], weight * replicas[place].in_flight)],
        )

    def _score(
        self,
        replicas: Sequence[Replica],
        cached: Mapping[Replica, float],
        keys: Sequence[int],
        prompt_bytes: int,
        bytes_per_token: float,
    ) -> tuple[list[float], list[float], list[float]]:
        """Return for each replica the blocks to prefill, the distinct blocks to keep, and the score."""
        scale = self._scale / BLOCK_TOKENS
        block_bytes = bytes_per_token * BLOCK_TOKENS
        prompt = prompt_bytes / bytes_per_token
        credit = self._credit
        least, slope = 0, 0.0
        if self._decay:
            least = min(replica.queued_tokens for replica in replicas)
            slope = self._decay / max(prompt, BLOCK_TOKENS)
        weight = self._request_weight
        actives = self._active
        first = keys[0] if keys else None
        prefill, decode, scores = [], [], []
        for replica in replicas:
            queued = replica.queued_tokens
            blocks = scale * (queued + prompt)
            if replica in cached:  # the credit is at most the prompt, so nothing falls below 0
                blocks -= scale * credit / (1.0 + slope * (queued - least)) * cached[replica]
            active = actives[replica]
            in_flight = replica.in_flight
            if active.length > in_flight:
                active.keep(in_flight)
            size = active.size + prompt_bytes
            if first in active.counts:
                size -= active.shared(keys)
            kept = size / block_bytes
            prefill.append(blocks)
            decode.append(kept)
            scores.append(blocks + kept + weight * in_flight)
        return prefill, decode, scores

    def _pick(self, scores: Sequence[float]) -> int:
        """Return the winner's place."""
        least = lowest(scores)
        if not self._temperature:
            return least[0] if len(least) == 1 else least[self._draws.below(len(least))]
        low, high = scores[least[0]], max(scores)
        spread = (high - low) * self._temperature or 1.0
        weights = [exp((low - score) / spread) for score in scores]
        left = self._draws.unit() * sum(weights)
        for place, weight in enumerate(weights):
            left -= weight
            if left <= 0.0:
                return place
        return len(scores) - 1
