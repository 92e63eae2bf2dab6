"""cost: the replica where the request is predicted to cost the fewest seconds, its own and those of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import ClassVar

from controlplane.routing.load import BLOCK_BYTES, CANDIDATES, Replica
from controlplane.routing.policies.base import Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.least_loaded import residents_of
from controlplane.routing.prefix_index import HASH_BYTES, Match, parts
from controlplane.routing.rates import Hints
from controlplane.routing.record import GENERATING_KINDS, Request
from controlplane.routing.view import View, whole_prompt_bytes

#: Replicas weighed in full for what they cache, and for how little they do.
HOLDERS = 16
SHORTLIST = 8
#: Replicas that the shortlist is made from, least in flight first. With 8 of 64 the simulated mean TTFT of
#: conversations is 1.2 times as long.
SCANNED = 64

_CHOSEN = attrgetter("chosen")
LOWEST_COST = Reason.LOWEST_COST.value
LOWEST_COST_WITH_CACHE = Reason.LOWEST_COST_WITH_CACHE.value


class Cost:
    """Lowest predicted seconds; equals by least recent choice.

    Score, in seconds::

        queued work / speed                                      prefill already queued there
      + own work / speed * (1 + interference * in_flight)        its own prefill, slowed by the streams there
      + decode_weight * output * (sequence * in_flight + context * context_tokens)
                                                                 how much longer every step takes
      + wait for KV room                                         when prompt and output would not fit
      + adapter_load_s                                           when the request's adapter is not resident

    ``work`` is uncached tokens, dearer the longer their context is; ``uncached`` is the prompt less its cached part, as
    far as that replica's predictions proved right (``trust``). ``speed`` (prefill tokens/s) and the step's factor are
    learned per replica, so replicas may differ.

    Reads: exact counts of requests, tokens queued and tokens in context; the prefix tree, or the engine's own KV events
    for a ``precise`` model; learned rates; adapters.
    Weighs: at most 16 holders of the prompt's parts, deepest first, and the 8 cheapest of the 64 least loaded.
    Limits: greedy, it never holds a request back for a better moment. With several gateways each sees its own requests.
    """

    name: ClassVar[str] = "cost"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "interference": Parameter(
            0.1,
            0.0,
            10.0,
            "Part of a prefill's time that each stream there adds. Simulated at 8 replicas, 0.07 to 0.1 is best near "
            "saturation and 0.3 where prefixes are shared and load is low, by 4 %; at 0 hot prefixes no longer spread.",
        ),
        "decode_weight": Parameter(
            0.1,
            0.0,
            10.0,
            "Weight of the seconds that others' streams lose against this request's wait; simulated: flat 0.03 to 0.3.",
        ),
        "room_weight": Parameter(1.0, 0.0, 100.0, "Weight of the predicted wait for room in the KV cache."),
        "adapter_load_s": Parameter(
            0.05, 0.0, 60.0, "Seconds to load an adapter that is not resident; engines need tens of milliseconds."
        ),
        "prefill_tokens_per_s": Parameter(
            20_000.0, 1.0, 1e9, "Prefill speed believed before a replica has worked; then it is learned."
        ),
        "attention_tokens": Parameter(
            32_000.0,
            100.0,
            1e9,
            "Context at which a token's prefill takes twice as long as in a short prompt. By operations: twice a "
            "model's parameters over 4 x layers x hidden size; 30,000 for an 8B Llama, 53,000 for 70B.",
        ),
        "step_ms": Parameter(8.0, 0.001, 60_000.0, "A decode step with one short sequence, likewise."),
        "sequence_us": Parameter(20.0, 0.0, 1e6, "What one more sequence adds to a step, likewise."),
        "context_ns": Parameter(50.0, 0.0, 1e6, "What one more token of context adds to a step, likewise."),
    }
    score_kind: ClassVar[ScoreKind] = ScoreKind.WRITTEN
    terms: ClassVar[tuple[str, ...]] = ("queue_s", "prefill_s", "slowdown_s", "wait_s")
    reads_prefixes: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._interference = values["interference"]
        self._decode_weight = values["decode_weight"]
        self._room_weight = values["room_weight"]
        self._adapter_load_s = values["adapter_load_s"]
        self.hints = Hints(
            prefill_tokens_per_s=values["prefill_tokens_per_s"],
            attention_tokens=values["attention_tokens"],
            step_s=values["step_ms"] / 1e3,
            sequence_s=values["sequence_us"] / 1e6,
            context_s=values["context_ns"] / 1e9,
        )

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Nothing is kept."""

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        prompt = view.tokens(whole_prompt_bytes(request))
        output = view.expected_output(request.max_tokens) if request.kind in GENERATING_KINDS else 0
        attention = self.hints.attention_tokens
        interference = self._interference
        slow = self._decode_weight * output
        own = prompt + output
        cached = self._cached(view, request, prompt, slow)
        scored = []
        for replica, hit in cached.items():
            believed = hit * replica.trust
            todo = prompt - believed
            work = todo * (1.0 + (believed + 0.5 * todo) / attention)
            queue_s = replica.left_s(now_s) if replica.waiting else 0.0
            prefill_s = work * (1.0 + interference * replica.in_flight) * replica.token_s
            slowdown_s = slow * replica.drag_s
            wait_s = 0.0
            capacity = replica.kv_capacity_tokens
            if capacity and replica.kv_tokens + own - hit > capacity:
                wait_s = self._room_weight * self._room_s(replica, own - hit, output)
            if view.adapter and replica not in view.residents:
                wait_s += self._adapter_load_s
            score = queue_s + prefill_s + slowdown_s + wait_s
            scored.append((score, replica.chosen, replica.serial, replica, hit, queue_s, prefill_s, slowdown_s, wait_s))
        scored.sort()
        del scored[CANDIDATES:]
        view.predicted = hit = scored[0][4]
        reason = LOWEST_COST_WITH_CACHE if hit else LOWEST_COST
        block = BLOCK_BYTES / view.bytes_per_token
        return (
            [entry[3] for entry in scored],
            [entry[0] for entry in scored],
            [int(entry[4] / block + 0.5) for entry in scored],
            reason,
            0,
            [term for entry in scored for term in entry[5:]],
        )

    def _cached(self, view: View, request: Request, prompt: int, slow: float) -> dict[Replica, int]:
        """Return the replicas to weigh, and how many of the prompt's tokens each is taken to cache."""
        order = view.order
        cached: dict[Replica, int] = {}
        held = view.held
        known = view.lookup(request)
        if held is not None:
            least = self._shortlist(view, prompt, slow)
            for replica, tokens in held.items():
                if replica.order is order and len(cached) < HOLDERS:
                    cached[replica] = min(tokens, prompt)
        elif known[0] or known[2] is not None:
            found = parts(known)
            per_byte = BLOCK_BYTES / HASH_BYTES / view.bytes_per_token
            # What too many hold to be weighed one by one is as good as held by all.
            common = next((depth for holders, depth in reversed(found) if len(holders) > HOLDERS), 0)
            least = self._shortlist(view, max(prompt - int(common * per_byte), 0), slow)
            self._take_holders(view, least, known, found, prompt, cached)
        else:
            least = self._shortlist(view, prompt, slow)
        if view.adapter:
            for replica in residents_of(view):
                cached.setdefault(replica, 0)
        for replica in least:
            cached.setdefault(replica, 0)
        return cached

    def _shortlist(self, view: View, tokens: int, slow: float) -> list[Replica]:
        """Return the (some 8) replicas that are the cheapest for ``tokens`` of prefill."""
        order = view.order
        if len(order.replicas) <= SHORTLIST:
            return order.least()
        scanned = order.replicas[:SCANNED]
        interference = self._interference
        costs = [
            replica.queue_s
            + tokens * (1.0 + interference * replica.in_flight) * replica.token_s
            + slow * replica.drag_s
            for replica in scanned
        ]
        limit = sorted(costs)[SHORTLIST - 1]
        found = [replica for replica, cost in zip(scanned, costs, strict=True) if cost <= limit]
        if len(found) > 2 * SHORTLIST:  # idle replicas cost the same: those that rested longest
            found.sort(key=_CHOSEN)
            del found[SHORTLIST:]
        return found

    def _take_holders(
        self,
        view: View,
        least: list[Replica],
        known: Match,
        found: list[tuple[dict[Replica, int], int]],
        prompt: int,
        cached: dict[Replica, int],
    ) -> None:
        """Put into ``cached`` the replicas that hold a part of the prompt, deepest first."""
        order = view.order
        per_byte = BLOCK_BYTES / HASH_BYTES / view.bytes_per_token
        nodes, _, partial, _ = known
        leaf = nodes[-1] if partial is None else None
        for holders, depth in reversed(found):
            few: Iterable[Replica] = holders
            if len(holders) > HOLDERS:
                few = [replica for replica in least if replica in holders] or islice(holders, SHORTLIST)
            tokens = min(int(depth * per_byte), prompt)
            for replica in few:
                if replica in cached or replica.order is not order:
                    continue
                before = replica.leaves.get(leaf, 0) if leaf is not None else 0
                if before:
                    # This continues the last prompt that ended here, and that prompt's answer is cached with it.
                    cached[replica] = min(max(tokens, int(view.tokens(before) + view.output_tokens)), prompt)
                else:
                    cached[replica] = tokens
                if len(cached) == HOLDERS:
                    return
            leaf = None

    @staticmethod
    def _room_s(replica: Replica, tokens: int, output: int) -> float:
        """Return the seconds until so many tokens of KV cache are free: requests end evenly over an answer's time."""
        if not replica.kv_tokens:
            return 0.0  # it would not fit into an idle replica either
        missing = replica.kv_tokens + tokens - replica.kv_capacity_tokens
        lasts_s = output * replica.rates.step_s(replica.in_flight, replica.context_tokens)
        return lasts_s * min(1.0, missing / replica.kv_tokens)
