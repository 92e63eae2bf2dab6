"""sticky_until_saturated: stay where most of the prompt is cached until that costs too much; as llm-d's router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from controlplane.routing.load import Replica
from controlplane.routing.policies.base import LONGEST_PREFIX, NO_PREFIX, Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.candidates import best_first, blocks_of, cached_tokens, lowest, weighed
from controlplane.routing.policies.draws import Draws
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: 4 of 5 blocks are 0.8 of a prompt, whatever the bytes in a token.
ROUNDING = 1.0 - 1e-9

PREFIX_OUTWEIGHED = Reason.PREFIX_OUTWEIGHED.value


class StickyUntilSaturated:
    """Affinity filter, load gate, then fewest uncached prompt tokens (llm-d/llm-d-router, guide optimized-baseline).

    ::

        sticky     = replicas that cache at least ``affinity_threshold`` of the prompt
        candidates = sticky, unless there are none, or their least backlog is more than ``max_ttft_penalty_ms``
                     above the least of the others (backlog = queued tokens / ``peak_prefill_tokens_per_s``); then all
        winner     = fewest queued tokens + own uncached tokens, counted up to ``queue_threshold_tokens``

    Equals take turns by name, as in ``max-score-picker`` (picker/common.go, 5155e4cbfb5c). Queued tokens are the
    uncached prompt tokens of requests without a first byte, which is what ``inflight-load-producer`` counts by
    default (its README.md, 2f1de8c05071).

    Score: tokens. Filtered-out replicas are not shown.
    Reads: queued tokens, the prefix tree or, for a ``precise`` model, the engines' own events.
    Weighs: all up to 64 replicas; beyond, at most 32 holders and the least loaded by requests, 64 in all.
    Mapped: the original matches blocks of the engine's size (16 or 64 tokens) in an LRU of the engine's capacity; here
    blocks of 4,096 bytes count, full ones only, in the part of the prompt that is hashed (128 KiB). Tokens are bytes /
    the learned bytes per token (the original: the tokenizer, or 4 bytes). One speed stands for all replicas, as there.
    """

    name: ClassVar[str] = "sticky_until_saturated"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "affinity_threshold": Parameter(
            0.8,
            0.0,
            1.0,
            "Part of the prompt that must be cached for a replica to be sticky; 0 switches the filter off. 0.80: "
            "affinityThreshold of llm-d-router (pkg/epp/framework/plugins/scheduling/filter/prefixcacheaffinity/"
            "plugin.go, 066c20ea107e).",
        ),
        "exploration_probability": Parameter(
            0.0,
            0.0,
            1.0,
            "Part of the decisions that skip the filter, drawn from the seed. 0: explorationProbability (same file).",
        ),
        "max_ttft_penalty_ms": Parameter(
            18_000.0,
            0.0,
            1e9,
            "Milliseconds of backlog above the others' least that stickiness is worth; 0: any. 18000: "
            "maxTTFTPenaltyMs (same file); the guide sets the same in tokens, 286720 "
            "(llm-d/llm-d guides/optimized-baseline/router/optimized-baseline.values.yaml, 0a3b0c939d50).",
        ),
        "peak_prefill_tokens_per_s": Parameter(
            15_928.0,
            1.0,
            1e9,
            "Prefill speed that turns backlog into time. 15928: peakPrefillThroughput (same file), measured by llm-d "
            "with Qwen3-32B on two H100; meant to be calibrated for other hardware.",
        ),
        "queue_threshold_tokens": Parameter(
            4_194_304.0,
            1.0,
            1e12,
            "Tokens beyond which replicas count as equally loaded. 4194304: queueThresholdTokens of token-load-scorer "
            "(pkg/epp/framework/plugins/scheduling/scorer/tokenload/token_load.go, 1b30d10f8006).",
        ),
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.WRITTEN
    terms: ClassVar[tuple[str, ...]] = ("queue_tokens", "own_tokens")
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._threshold = values["affinity_threshold"]
        self._exploration = values["exploration_probability"]
        self._gate_tokens = values["max_ttft_penalty_ms"] / 1e3 * values["peak_prefill_tokens_per_s"]
        self._cap = values["queue_threshold_tokens"]
        self._draws = Draws(seed)
        self._turn = 0
        self._members: Sequence[Replica] = ()

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Take who may be chosen."""
        self._members = members

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        cached, total = cached_tokens(view, request, view.lookup(request))
        everyone = weighed(view, self._members, cached)
        kept: Sequence[Replica] = everyone
        reason = PREFIX_OUTWEIGHED if cached else NO_PREFIX
        if cached and self._threshold > 0.0 and len(everyone) > 1 and not self._explores():
            enough = self._threshold * total * ROUNDING
            sticky = [replica for replica, tokens in cached.items() if tokens >= enough]
            if sticky and not self._saturated(sticky, everyone):
                kept = sticky
                reason = LONGEST_PREFIX
        return self._least(view, kept, cached, float(view.tokens(request.prompt_bytes)), reason)

    def _explores(self) -> bool:
        return self._exploration > 0.0 and self._draws.unit() < self._exploration

    def _saturated(self, sticky: Sequence[Replica], everyone: Sequence[Replica]) -> bool:
        """Whether waiting at the best sticky replica costs too much against the best of the others."""
        gate = self._gate_tokens
        if not gate:
            return False
        best = min(replica.queued_tokens for replica in sticky)
        if best <= gate:
            return False  # nobody's backlog is below 0
        stays = set(sticky)
        others = [replica.queued_tokens for replica in everyone if replica not in stays]
        return bool(others) and best - min(others) > gate

    def _least(
        self, view: View, kept: Sequence[Replica], cached: Mapping[Replica, float], prompt: float, reason: int
    ) -> Choice:
        """Choose the fewest tokens to work off."""
        cap = self._cap
        tokens_of = cached.get
        own = [max(0.0, prompt - tokens_of(replica, 0.0)) for replica in kept]
        scores = [min(cap, replica.queued_tokens + tokens) for replica, tokens in zip(kept, own, strict=True)]
        equals = lowest(scores)
        winner = equals[0]
        if len(equals) > 1:
            winner = equals[self._turn % len(equals)]
            self._turn = (self._turn % len(equals) + 1) % len(equals)
        places = best_first(scores, winner)
        shown = [kept[place] for place in places]
        return (
            shown,
            [scores[place] for place in places],
            [blocks_of(view, tokens_of(replica, 0.0)) for replica in shown],
            reason,
            0,
            [term for place in places for term in (float(kept[place].queued_tokens), own[place])],
        )
