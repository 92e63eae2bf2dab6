"""At any size, no policy names a replica that drains, is down, or serves another model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.core import RoutingCore
from controlplane.routing.fleet import ModelInfo, PoolInfo, ReplicaInfo, Topology
from tests.controlplane.routing import worlds

PEERS = ["cache_aware", "kv_overlap", "prefix_tree", "sticky_until_saturated", "weighted_blend"]
STATES = ["ready", "draining", "starting", "stopped"]
prompts = st.lists(st.integers(0, 1), max_size=5)
asked_of = st.lists(st.tuples(prompts, st.sampled_from(["", "user=a", "user=b"])), min_size=1, max_size=12)


def topology(policy: str, replicas: list[ReplicaInfo], number: int) -> Topology:
    models = tuple(ModelInfo(name, pools=(PoolInfo(name, "mixed"),), policy=policy) for name in ("m", "n"))
    return Topology(number, "test", models, tuple(replicas))


@pytest.mark.parametrize("policy", PEERS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    count=st.sampled_from([1, 5, 64, 90]),
    draw=st.lists(st.sampled_from(STATES), min_size=7, max_size=7),
    asked=asked_of,
)
def test_only_ready_replicas_of_the_model(
    policy: str, count: int, draw: list[str], asked: list[tuple[list[int], str]]
) -> None:
    core = RoutingCore(receipt_capacity=100)
    before = [worlds.replica(f"{model}-{index}", model=model, pool=model) for index in range(count) for model in "mn"]
    core.install(topology(policy, before, 1), 0.0)
    for number, (blocks, session) in enumerate(asked):
        for model in "mn":  # the same prompts, so that each model's replicas hold what the other's are asked
            core.decide(b"before %d" % number, worlds.request(model, blocks=blocks, session=session), 0.0)
    after = [
        worlds.replica(f"{model}-{index}", model=model, pool=model, state=draw[index % 7])
        for index in range(count)
        for model in "mn"
    ]
    core.install(topology(policy, after, 2), 1.0)
    ready = {replica.server for replica in after if replica.state == "ready" and replica.model == "m"}
    for number, (blocks, session) in enumerate(asked):
        decision = core.decide(b"%d" % number, worlds.request("m", blocks=blocks, session=session), 2.0)
        receipt = core.receipt(b"%d" % number)
        assert receipt is not None
        if ready:
            assert decision.server_name in ready
            assert {candidate.server for candidate in receipt.candidates} <= ready
        else:
            assert decision.error == "no_replica_available"
