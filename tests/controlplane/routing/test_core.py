from __future__ import annotations

import gc

import pytest

from controlplane.routing import in_flight as core_module
from controlplane.routing.core import RoutingCore
from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.policies import registry
from tests.controlplane.routing import worlds


def test_without_a_topology_nothing_is_available() -> None:
    assert RoutingCore(receipt_capacity=8).decide(b"a", worlds.request(), 0.0).error == "no_replica_available"


def test_decisions_about_one_server_are_one_object() -> None:
    core = worlds.core(1, "round_robin")
    first = core.decide(b"a", worlds.request(), 0.0)
    assert core.decide(b"b", worlds.request(), 0.0) is first
    assert (first.pool, first.server, first.address) == (b"p", b"p-0.g1", "127.0.0.1:8000")


def test_a_request_that_asks_again_is_counted_once() -> None:
    core = worlds.core(3, "round_robin")
    core.decide(b"a", worlds.request(), 0.0)
    core.decide(b"a", worlds.request(), 0.0)
    assert sum(load.in_flight for load in core.loads()) == 1


def test_requests_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "MAX_IN_FLIGHT", 100)
    monkeypatch.setattr(core_module, "OVERFLOW_BATCH", 10)
    core = worlds.core(3, "least_loaded")
    for number in range(500):
        core.decide(b"%d" % number, worlds.request(), 0.0)
        assert core.counters().in_flight <= 100
        assert sum(load.in_flight for load in core.loads()) == core.counters().in_flight
    assert core.counters().orphans == 500 - core.counters().in_flight


def test_state_follows_the_incarnation() -> None:
    core = worlds.core(2, "least_loaded")
    decision = core.decide(b"a", worlds.request(), 0.0)
    replicas = [worlds.replica("p-0", generation=2), worlds.replica("p-1", state="draining")]
    core.install(worlds.topology(0, "least_loaded", number=2, replicas=replicas), 1.0)
    assert [load.in_flight for load in core.loads()] == [0, 0]
    assert core.finished(worlds.completion(b"a", decision.server), 2.0)
    assert [load.in_flight for load in core.loads()] == [0, 0]
    core.install(worlds.topology(2, "least_loaded", number=3), 3.0)
    assert [load.decisions for load in core.loads()] == [0, 0]


def test_a_draining_server_keeps_its_count() -> None:
    core = worlds.core(1, "least_loaded")
    core.decide(b"a", worlds.request(), 0.0)
    core.decide(b"b", worlds.request(), 0.0)
    draining = worlds.topology(0, "least_loaded", number=2, replicas=[worlds.replica("p-0", state="draining")])
    core.install(draining, 1.0)
    core.finished(worlds.completion(b"a", b"p-0.g1"), 2.0)
    assert [load.in_flight for load in core.loads()] == [1]
    core.install(worlds.topology(1, "least_loaded", number=3), 3.0)
    core.finished(worlds.completion(b"b", b"p-0.g1"), 4.0)
    assert [load.in_flight for load in core.loads()] == [0]


def test_a_model_that_leaves_and_an_adapter_that_leaves_take_their_state_along() -> None:
    core = worlds.core(2, "prefix", adapters=["lora"])
    core.decide(b"a", worlds.request("lora", blocks=[1, 2]), 0.0)
    core.install(worlds.topology(2, "prefix", number=2), 1.0)
    assert core.decide(b"b", worlds.request("lora"), 1.0).error == "model_not_found"
    core.install(worlds.topology(2, "prefix", number=3, adapters=["lora"]), 2.0)
    core.decide(b"c", worlds.request("lora", blocks=[1, 2]), 2.0)
    receipt = core.receipt(b"c")
    assert receipt is not None
    assert receipt.reason == "no_prefix"


def test_an_unchanged_policy_keeps_its_number() -> None:
    core = worlds.core(2, "session")
    for number, factor, expected in ((2, 1.25, 1), (3, 2.0, 2)):
        core.install(worlds.topology(2, "session", number=number, parameters={"load_factor": factor}), 0.0)
        core.decide(b"a", worlds.request(), 0.0)
        receipt = core.receipt(b"a")
        assert receipt is not None
        assert receipt.policy_number == expected


def test_a_wrong_policy_changes_nothing() -> None:
    core = worlds.core(2, "round_robin")
    with pytest.raises(UnknownPolicy):
        core.install(worlds.topology(5, "no_such", number=2), 0.0)
    assert len(core.loads()) == 2
    assert core.counters().topology_number == 1


@pytest.mark.parametrize("policy", sorted(registry.POLICIES))
def test_parameters_are_documented_and_checked(policy: str) -> None:
    for name, parameter in registry.parameters(policy).items():
        assert parameter.minimum <= parameter.default <= parameter.maximum
        assert len(parameter.doc) > 30
        for wrong in (parameter.minimum - 1, parameter.maximum + 1, float("nan")):
            with pytest.raises(UnknownPolicy, match=name):
                registry.checked(policy, {name: wrong})
    with pytest.raises(UnknownPolicy, match="unknown parameter"):
        registry.checked(policy, {"nothing": 1.0})


def test_only_successes_teach_the_first_byte() -> None:
    core = worlds.core(1, "round_robin")
    for status, first_byte_ms, expected in ((200, 100, 100.0), (500, 1, 100.0), (200, -1, 100.0), (200, 200, 120.0)):
        decision = core.decide(b"a", worlds.request(), 0.0)
        core.finished(worlds.completion(b"a", decision.server, status=status, first_byte_ms=first_byte_ms), 0.0)
        assert core.loads()[0].first_byte_ms == pytest.approx(expected)


def test_a_hot_prefix_spreads() -> None:
    core = worlds.core(8, "prefix")
    for number in range(400):
        core.decide(b"%d" % number, worlds.request(blocks=["sys", 1, 2, 3, 4, 5, 6, 7, number]), 0.0)
    loads = [load.in_flight for load in core.loads()]
    assert max(loads) <= 2 * 400 / 8 + 1
    assert min(loads) >= 400 / 8 / 2


def test_the_prompt_is_held_where_the_answer_came_from() -> None:
    core = worlds.core(2, "prefix")
    chosen = core.decide(b"a", worlds.request(blocks=[1, 2, 3]), 0.0).server
    other = next(load.server.encode() for load in core.loads() if load.server.encode() != chosen)
    core.finished(worlds.completion(b"a", other), 0.0)
    for number in range(4):  # whoever's turn it is among equals
        assert core.decide(b"%d" % number, worlds.request(blocks=[1, 2, 3]), 0.0).server == other
        core.finished(worlds.completion(b"%d" % number, other), 0.0)


def test_a_prompt_of_less_than_a_block_is_spread_by_load() -> None:
    core = worlds.core(4, "prefix")
    asked = worlds.request(blocks=[1], prompt_bytes=100)
    assert len({core.decide(b"%d" % number, asked, 0.0).server for number in range(4)}) == 4


def test_residents_of_an_adapter_are_bounded() -> None:
    names = [f"lora-{number}" for number in range(30)]
    core = worlds.core(1, "least_loaded", adapters=names)
    for name in names:
        core.decide(name.encode(), worlds.request(name), 0.0)
    core.decide(b"again", worlds.request(names[0]), 0.0)
    core.decide(b"last", worlds.request(names[-1]), 0.0)
    resident = []
    for request_id in (b"again", b"last"):
        receipt = core.receipt(request_id)
        assert receipt is not None
        resident.append([signal.value for signal in receipt.candidates[0].signals if signal.name == "adapter_resident"])
    assert resident == [[0.0], [1.0]]


@pytest.mark.parametrize("policy", sorted(registry.POLICIES))
def test_a_router_makes_no_cyclic_garbage(policy: str) -> None:
    """So that its process may run without the cyclic collector, whose pauses all streams would feel."""
    replicas = [worlds.replica(f"p-{index}", kv_capacity_tokens=16 * 1024) for index in range(4)]
    core = worlds.core(0, policy, replicas=replicas, adapters=["lora"])
    gc.collect()
    gc.disable()
    try:
        for number in range(1000):
            name = "lora" if number % 5 == 0 else "m"
            asked = worlds.request(name, session=f"user={number % 9}", blocks=[number % 3, number % 7, number])
            decision = core.decide(b"%d" % number, asked, 0.0)
            core.finished(worlds.completion(b"%d" % number, decision.server), 0.0)
            if number % 100 == 0:
                moved = [worlds.replica(f"p-{index}", generation=number + 2) for index in range(2 + number // 100 % 3)]
                core.install(worlds.topology(0, policy, adapters=["lora"], number=number + 2, replicas=moved), 0.0)
        assert gc.collect() == 0
    finally:
        gc.enable()
