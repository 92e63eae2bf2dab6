"""Each policy against a plain transcription of its original's rules, over every replica, on small random fleets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.load import Replica
from controlplane.routing.policies.registry import checked as checked_values
from controlplane.routing.policies.registry import parameters
from tests.controlplane.routing.policies.fleet import BLOCK_TOKENS, Fleet, common

checked = settings(max_examples=120, derandomize=True, deadline=None)
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=6)
#: What happens: a request of these blocks, a first byte or an end at one replica.
scripts = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), prompts),
        st.tuples(st.just("ask"), prompts),
        st.tuples(st.just("ask"), prompts),
        st.tuples(st.just("first byte"), st.integers(0, 70)),
        st.tuples(st.just("end"), st.integers(0, 70)),
    ),
    min_size=25,
    max_size=50,
)
counts = st.sampled_from([1, 2, 3, 3, 8, 64])
Winners = Callable[[Fleet, Sequence[object], Mapping[str, float]], list[Replica]]


def play(
    fleet: Fleet, script: Sequence[tuple[str, object]], winners: Winners, values: Mapping[str, float]
) -> list[Replica]:
    chosen = []
    for event in script:
        match event:
            case ("ask", list(blocks)):
                expected = winners(fleet, blocks, values)
                chosen.append(fleet.ask(blocks))
                assert chosen[-1] in expected
            case ("first byte", int(which)):
                fleet.first_byte(fleet.replicas[which % len(fleet.replicas)])
            case ("end", int(which)):
                fleet.end(fleet.replicas[which % len(fleet.replicas)])
    return chosen


def least(replicas: Sequence[Replica], key: Callable[[Replica], float]) -> list[Replica]:
    lowest = min(key(replica) for replica in replicas)
    return [replica for replica in replicas if abs(key(replica) - lowest) < 1e-6]


def cache_aware(fleet: Fleet, blocks: Sequence[object], values: Mapping[str, float]) -> list[Replica]:
    """vllm-project/router src/policies/cache_aware.rs: select_worker_with_headers."""
    loads = [replica.in_flight for replica in fleet.replicas]
    idlest = least(fleet.replicas, lambda replica: replica.in_flight)[:1]
    if (
        max(loads) - min(loads) > values["balance_abs_threshold"]
        and max(loads) > min(loads) * values["balance_rel_threshold"]
    ):
        return idlest
    matched = max((common(blocks, prompt) for _, prompt in fleet.sent), default=0)
    if matched / len(blocks) > values["cache_threshold"]:
        return [next(holder for holder, prompt in fleet.sent if common(blocks, prompt) == matched)]
    return idlest


def sticky_until_saturated(fleet: Fleet, blocks: Sequence[object], values: Mapping[str, float]) -> list[Replica]:
    """llm-d-router: prefix-cache-affinity-filter (Filter), then token-load-scorer (Score)."""
    replicas = fleet.replicas
    hits = {replica: fleet.depth(replica, blocks) for replica in replicas}

    def backlog_ms(replica: Replica) -> float:
        return replica.queued_tokens / values["peak_prefill_tokens_per_s"] * 1000

    sticky = [replica for replica in replicas if hits[replica] / len(blocks) >= values["affinity_threshold"]]
    others = [replica for replica in replicas if replica not in sticky]
    kept = sticky or replicas
    if sticky and others and len(replicas) > 1:
        penalty = min(map(backlog_ms, sticky)) - min(map(backlog_ms, others))
        if penalty > values["max_ttft_penalty_ms"]:
            kept = replicas
    fleet.expected = set(kept)
    return least(kept, lambda replica: replica.queued_tokens + (len(blocks) - hits[replica]) * BLOCK_TOKENS)


def kv_overlap(fleet: Fleet, blocks: Sequence[object], values: Mapping[str, float]) -> list[Replica]:
    """Dynamo: DefaultWorkerScorer.worker_logit, temperature 0."""
    floor = min(replica.queued_tokens for replica in fleet.replicas)
    prompt = len(blocks) * BLOCK_TOKENS

    def cost(replica: Replica) -> float:
        prompts = [held for held, _ in fleet.active[replica]] + [tuple(blocks)]
        distinct = {held[: number + 1] for held in prompts for number in range(len(held))}
        faded = 1.0 + values["overlap_score_credit_decay"] * (replica.queued_tokens - floor) / prompt
        credit = values["overlap_score_credit"] / faded * fleet.depth(replica, blocks) * BLOCK_TOKENS
        prefill = values["prefill_load_scale"] * max(0.0, (replica.queued_tokens + prompt - credit) / 16)
        requests = values["decode_active_request_weight"] * replica.in_flight
        return prefill + len(distinct) * BLOCK_TOKENS / 16 + requests

    return least(fleet.replicas, cost)


def prefix_tree(fleet: Fleet, blocks: Sequence[object], values: Mapping[str, float]) -> list[Replica]:
    """Ray: PrefixCacheAffinityRouter._prefix_match_best_replicas, then the shortest queue of what it returns."""
    loads = [replica.in_flight for replica in fleet.replicas]
    if max(loads) - min(loads) > values["imbalanced_threshold"]:
        # Two are drawn: anyone may win but a single busiest.
        busiest = max(loads)
        return [replica for replica in fleet.replicas if replica.in_flight < busiest or loads.count(busiest) > 1]
    matched = max((common(blocks, prompt) for _, prompt in fleet.sent), default=0)
    if not matched or matched / len(blocks) < values["match_rate_threshold"]:
        chars: dict[Replica, set[tuple[object, ...]]] = {replica: set() for replica in fleet.replicas}
        for holder, prompt in fleet.sent:
            chars[holder] |= {prompt[: number + 1] for number in range(len(prompt))}
        best = least(fleet.replicas, lambda replica: len(chars[replica]))
    else:
        best = [replica for replica in fleet.replicas if fleet.depth(replica, blocks) == matched]
    return least(best, lambda replica: replica.in_flight)[:1]


def weighted_blend(fleet: Fleet, blocks: Sequence[object], values: Mapping[str, float]) -> list[Replica]:
    """llm-d-router: queue-scorer, kv-cache-utilization-scorer and prefix-cache-scorer, highest weighted sum."""
    waiting = [replica.waiting for replica in fleet.replicas]

    def score(replica: Replica) -> float:
        queue = 1.0
        if max(waiting) > min(waiting):
            queue = (max(waiting) - replica.waiting) / (max(waiting) - min(waiting))
        room = 1 - min(1.0, replica.kv_tokens / replica.kv_capacity_tokens)
        prefix = fleet.depth(replica, blocks) / len(blocks)
        return values["queue_weight"] * queue + values["kv_weight"] * room + values["prefix_weight"] * prefix

    return least(fleet.replicas, lambda replica: -score(replica))


@checked
@given(script=scripts, count=counts, weights=st.sampled_from([(2, 2, 3), (1, 1, 1), (2, 0, 0), (0, 1, 5)]))
def test_weighted_blend(script: list[tuple[str, object]], count: int, weights: tuple[float, float, float]) -> None:
    values = dict(zip(("queue_weight", "kv_weight", "prefix_weight"), weights, strict=True))
    fleet = Fleet("weighted_blend", count, values)
    for number, replica in enumerate(fleet.replicas):
        replica.kv_capacity_tokens = 10_000
        replica.kv_tokens = number * 1_700 % 12_000
    play(fleet, script, weighted_blend, values)


@checked
@given(
    script=scripts,
    count=counts,
    thresholds=st.sampled_from([(0.3, 64, 1.5), (0.5, 32, 1.1), (0.5, 2, 1.1), (0.3, 1, 1.5), (0.0, 0, 1.0)]),
)
def test_cache_aware(script: list[tuple[str, object]], count: int, thresholds: tuple[float, float, float]) -> None:
    names = ("cache_threshold", "balance_abs_threshold", "balance_rel_threshold")
    values = dict(zip(names, thresholds, strict=True))
    play(Fleet("cache_aware", count, values), script, cache_aware, values)


@checked
@given(
    script=scripts,
    count=counts,
    threshold=st.sampled_from([0.8, 0.5, 0.99]),
    penalty=st.sampled_from([18_000, 200, 70, 10]),
)
def test_sticky_until_saturated(script: list[tuple[str, object]], count: int, threshold: float, penalty: float) -> None:
    values = {
        "affinity_threshold": threshold,
        "max_ttft_penalty_ms": penalty,
        "peak_prefill_tokens_per_s": 15_928.0,
    }
    play(Fleet("sticky_until_saturated", count, values), script, sticky_until_saturated, values)


@checked
@given(
    script=scripts,
    count=counts,
    weights=st.sampled_from([(1.0, 0.0, 1.0, 0.0), (1.0, 0.0, 8.0, 0.0), (0.5, 2.0, 1.0, 40.0), (0.0, 0.0, 1.0, 1.0)]),
)
def test_kv_overlap(script: list[tuple[str, object]], count: int, weights: tuple[float, ...]) -> None:
    names = (
        "overlap_score_credit",
        "overlap_score_credit_decay",
        "prefill_load_scale",
        "decode_active_request_weight",
    )
    values = dict(zip(names, weights, strict=True))
    play(Fleet("kv_overlap", count, values), script, kv_overlap, values)


@checked
@given(script=scripts, count=counts, imbalance=st.sampled_from([1e9, 3, 0]), rate=st.sampled_from([0.1, 0.4, 1.0]))
def test_prefix_tree(script: list[tuple[str, object]], count: int, imbalance: float, rate: float) -> None:
    values = {"imbalanced_threshold": imbalance, "match_rate_threshold": rate}
    play(Fleet("prefix_tree", count, values), script, prefix_tree, values)


def anyone(fleet: Fleet, blocks: Sequence[object], values: Mapping[str, float]) -> list[Replica]:
    return fleet.replicas


@checked
@given(
    policy=st.sampled_from(["cache_aware", "sticky_until_saturated", "kv_overlap", "prefix_tree"]),
    script=scripts,
    count=st.sampled_from([3, 64, 65, 200]),
    seed=st.integers(0, 5),
)
def test_the_same_calls_and_seed_choose_the_same(
    policy: str, script: list[tuple[str, object]], count: int, seed: int
) -> None:
    values = {
        "sticky_until_saturated": {"exploration_probability": 0.5},
        "kv_overlap": {"router_temperature": 1.0},
        "prefix_tree": {"imbalanced_threshold": 1.0},
    }.get(policy, {})
    one, other = (
        [replica.serial for replica in play(Fleet(policy, count, values, seed), script, anyone, values)]
        for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize("policy", ["sticky_until_saturated", "kv_overlap", "weighted_blend"])
def test_beyond_64_replicas_a_holder_and_an_idle_one_are_found(policy: str) -> None:
    fleet = Fleet(policy, 300)
    for number in range(300):
        fleet.ask([f"own {number}", 1, 2, 3])
    for replica in fleet.replicas:
        fleet.first_byte(replica)
    holder, prompt = fleet.sent[170]
    assert fleet.ask([*prompt, 4]) is holder
    idle = fleet.replicas[250]
    fleet.end(idle)
    assert fleet.ask(["new"]) is idle


def test_ties_are_drawn_from_the_seed() -> None:
    chosen = {Fleet("kv_overlap", 8, seed=seed).ask(["A"]).serial for seed in range(40)}
    assert len(chosen) == 8


def test_a_high_temperature_spreads_and_a_low_one_does_not() -> None:
    def spread(temperature: float) -> int:
        fleet = Fleet("kv_overlap", 4, {"router_temperature": temperature})
        for _ in range(40):
            fleet.end(fleet.ask(["A", "B", "C"]))
        return len({holder for holder, _ in fleet.sent})

    assert spread(0.0) == 1
    assert spread(100.0) == 4


def test_exploration_lets_another_replica_win() -> None:
    def used(probability: float) -> int:
        fleet = Fleet("sticky_until_saturated", 4, {"exploration_probability": probability})
        for _ in range(30):
            fleet.ask([1, 2, 3, 4, 5])  # as dear where it is cached and queued as where it is not
        return len({holder for holder, _ in fleet.sent})

    assert used(0.0) == 1
    assert used(0.5) == used(1.0) == 4


def test_a_session_is_forgotten_with_its_replica_and_after_its_time() -> None:
    fleet = Fleet("cache_aware", 3)
    home = fleet.ask(["s", 1], session="user=a", now_s=0.0)
    fleet.end(home)
    assert fleet.ask(["t", 1], session="user=a", now_s=3600.0) is home
    rest = [replica for replica in fleet.replicas if replica is not home]
    fleet.order.fill(rest)
    fleet.policy.refresh(rest, [replica.info.name for replica in rest])
    assert fleet.ask(["u", 1], session="user=a", now_s=3601.0) in rest


def test_sessions_are_not_read_without_a_time_to_live() -> None:
    fleet = Fleet("cache_aware", 3, {"session_ttl_s": 0.0})
    assert len({fleet.ask([number], session="user=a") for number in range(3)}) == 3


@pytest.mark.parametrize("policy", ["cache_aware", "sticky_until_saturated", "prefix_tree"])
def test_a_prompt_of_less_than_a_block_goes_by_load(policy: str) -> None:
    fleet = Fleet(policy, 3)
    assert len({fleet.ask([]) for _ in range(3)}) == 3


PUBLISHED = {
    "cache_aware": {
        "cache_threshold": 0.3,
        "balance_abs_threshold": 64,
        "balance_rel_threshold": 1.5,
        "session_ttl_s": 3600,
    },
    "sticky_until_saturated": {
        "affinity_threshold": 0.8,
        "exploration_probability": 0,
        "max_ttft_penalty_ms": 18_000,
        "peak_prefill_tokens_per_s": 15_928,
        "queue_threshold_tokens": 4_194_304,
    },
    "kv_overlap": {
        "overlap_score_credit": 1,
        "overlap_score_credit_decay": 0,
        "prefill_load_scale": 1,
        "decode_active_request_weight": 0,
        "router_temperature": 0,
    },
    "prefix_tree": {"imbalanced_threshold": 1e9, "match_rate_threshold": 0.1},
    "weighted_blend": {"queue_weight": 2, "kv_weight": 2, "prefix_weight": 3},
}


@pytest.mark.parametrize("policy", sorted(PUBLISHED))
def test_defaults_are_the_published_ones(policy: str) -> None:
    assert checked_values(policy, {}) == PUBLISHED[policy]
    assert all(parameter.doc for parameter in parameters(policy).values())


def test_the_library_defaults_of_cache_aware_can_be_set() -> None:
    library = {"cache_threshold": 0.5, "balance_abs_threshold": 32, "balance_rel_threshold": 1.1, "session_ttl_s": 0}
    assert checked_values("cache_aware", library) == library
