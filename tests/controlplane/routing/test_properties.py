from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, EngineReport, FirstByte, Telemetry
from controlplane.routing.fleet import ReplicaInfo
from controlplane.routing.load import Replica
from controlplane.routing.load_order import LoadOrder
from controlplane.routing.policies.registry import POLICIES
from controlplane.routing.prefix_index import HASH_BYTES, Node, hold, match, new_root, parts, release_all, share_nodes
from tests.controlplane.routing import worlds

checked = settings(max_examples=150, derandomize=True, deadline=None)
policies = pytest.mark.parametrize("policy", sorted(POLICIES))
sessions = st.sampled_from(["", "user=a", "user=b", "x-session-id=c"])
prompts = st.lists(st.integers(0, 2), max_size=6)
#: What happens: a request (session, prompt, adapter or not), an end (which, on which server), a topology, a count.
events = st.lists(
    st.one_of(
        st.tuples(st.just("request"), sessions, prompts, st.sampled_from(["m", "lora"])),
        st.tuples(st.just("end"), st.integers(0, 30), st.booleans(), st.integers(-1, 50)),
        st.tuples(st.just("topology"), st.integers(1, 5), st.integers(1, 3)),
        st.tuples(st.just("count"), st.integers(0, 3)),
        st.tuples(st.just("first byte"), st.integers(0, 30), st.booleans()),
        st.tuples(st.just("report"), st.integers(0, 30), st.integers(-2, 9000), st.integers(-2, 9000)),
        st.tuples(st.just("telemetry"), st.integers(0, 4), st.floats(-1.0, 2.0)),
        st.tuples(st.just("cleared"), st.integers(0, 4)),
    ),
    max_size=60,
)


def play(policy: str, script: list[tuple[object, ...]], core: RoutingCore) -> list[str]:
    """Run the events; check after each that every load is sane; return the servers that were chosen."""
    chosen: list[str] = []
    waiting: list[tuple[bytes, bytes]] = []
    core.install(worlds.topology(3, policy, adapters=["lora"]), 0.0)
    for now, event in enumerate(script):
        match event:
            case ("request", str(session), list(blocks), str(model)):
                request_id = b"%d" % now
                decision = core.decide(request_id, worlds.request(model, session=session, blocks=blocks), float(now))
                chosen.append(decision.server_name)
                waiting.append((request_id, decision.server))
            case ("end", int(which), bool(elsewhere), int(first)) if waiting:
                request_id, server = waiting.pop(which % len(waiting))
                server = b"p-0.g1" if elsewhere else server
                assert core.finished(worlds.completion(request_id, server, first_byte_ms=first), float(now))
            case ("topology", int(count), int(generation)):
                replicas = [worlds.replica(f"p-{index}", generation) for index in range(count)]
                core.install(worlds.topology(0, policy, adapters=["lora"], replicas=replicas), float(now))
            case ("first byte", int(which), bool(elsewhere)) if waiting:
                request_id, server = waiting[which % len(waiting)]
                core.first_byte(FirstByte(request_id, b"p-0.g1" if elsewhere else server), float(now))
            case ("report", int(which), int(prompt), int(cached)) if waiting:
                request_id, server = waiting[which % len(waiting)]
                core.reported(EngineReport(request_id, server, prompt, cached, 20, 0.0, 0.5), float(now))
            case ("telemetry", int(which), float(use)):
                taken = core.observed(Telemetry(b"p-%d.g1" % which, 1, 0, use, 0, 0, 0, 0), float(now))
                assert not taken or 0.0 <= use <= 1.0
            case ("cleared", int(which)):
                core.cache_cleared(CacheCleared(b"p-%d.g1" % which), float(now))
            case ("count", int(streams)):
                core.reconcile({load.server: streams for load in core.loads()}, float(now))
        for load in core.loads():
            assert load.in_flight >= load.waiting >= 0
            assert load.context_tokens >= load.queued_tokens >= 0
    for request_id, server in waiting:
        core.finished(worlds.completion(request_id, server), 99.0)
        assert not core.finished(worlds.completion(request_id, server), 99.0)
    return chosen


@policies
@checked
@given(script=events)
def test_loads_return_to_zero_and_the_same_events_choose_the_same(
    policy: str, script: list[tuple[object, ...]]
) -> None:
    one = RoutingCore(seed=7, receipt_capacity=50)
    chosen = play(policy, script, one)
    # What is left is the base that a count gave; a count of nothing takes it away.
    one.reconcile({}, 99.0)
    for load in one.loads():
        assert load.in_flight == load.waiting == load.queued_tokens == load.context_tokens == 0
    assert one.counters().in_flight == 0
    assert play(policy, script, RoutingCore(seed=7, receipt_capacity=10)) == chosen


@policies
@checked
@given(
    states=st.lists(st.sampled_from(["ready", "draining", "starting"]), min_size=3, max_size=12),
    asked=st.lists(st.tuples(sessions, prompts), min_size=1, max_size=20),
)
def test_only_ready_replicas_of_the_model_are_named(
    policy: str, states: list[str], asked: list[tuple[str, list[int]]]
) -> None:
    core = RoutingCore(receipt_capacity=50)
    replicas = [worlds.replica(f"p-{index}", state=state) for index, state in enumerate(states)]
    core.install(worlds.topology(len(states), policy), 0.0)  # all ready, so that caches and loads are there
    for number, (session, blocks) in enumerate(asked):
        core.decide(b"before %d" % number, worlds.request(session=session, blocks=list(blocks)), 0.0)
    others = [worlds.replica(f"o-{index}", model="other", pool="o") for index in range(2)]
    core.install(worlds.topology(0, policy, replicas=[*replicas, *others]), 1.0)
    ready = {replica.server for replica in replicas if replica.state == "ready"}
    for number, (session, blocks) in enumerate(asked):
        decision = core.decide(b"%d" % number, worlds.request(session=session, blocks=list(blocks)), 2.0)
        receipt = core.receipt(b"%d" % number)
        assert receipt is not None
        if ready:
            assert decision.server_name in ready
            assert {candidate.server for candidate in receipt.candidates} <= ready
        else:
            assert decision.error == "no_replica_available"


@checked
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.tuples(st.integers(0, 11), st.booleans())))
def test_load_order_stays_sorted(loads: list[int], changes: list[tuple[int, bool]]) -> None:
    replicas = [Replica(worlds.replica(f"p-{index}"), index) for index in range(len(loads))]
    for replica, load in zip(replicas, loads, strict=True):
        replica.in_flight = load
    order = LoadOrder(replicas)
    for which, more in changes:
        replica = replicas[which % len(replicas)]
        if more:
            replica.begin()
        elif replica.in_flight:
            replica.end()
        in_order = [member.in_flight for member in order.replicas]
        assert in_order == sorted(in_order)
        assert all(member.position == place for place, member in enumerate(order.replicas))
        assert order.total == sum(in_order)
        least = order.least()
        assert len(set(least)) == len(least) == min(8, len(replicas))
        assert sorted(member.in_flight for member in least) == in_order[: len(least)]


def test_idle_replicas_are_used_in_turn() -> None:
    core = worlds.core(5, "least_loaded")
    used = []
    for number in range(20):
        decision = core.decide(b"r", worlds.request(), float(number))
        core.finished(worlds.completion(b"r", decision.server), float(number))
        used.append(decision.server_name)
    assert set(Counter(used).values()) == {4}
    assert used[:5] == used[5:10]


@checked
@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=120), st.sampled_from([1.0, 1.25, 2.0]))
def test_the_bound_of_loads_holds(script: list[tuple[int, bool]], factor: float) -> None:
    core = worlds.core(5, "session", parameters={"load_factor": factor, "load_floor": 1})
    waiting: list[tuple[bytes, bytes]] = []
    for number, (key, ends) in enumerate(script):
        if ends and waiting:
            core.finished(worlds.completion(*waiting.pop(key % len(waiting))), 0.0)
            continue
        # Few keys, so that without the bound they would crowd.
        decision = core.decide(b"%d" % number, worlds.request(session=f"user={key % 3}"), 0.0)
        waiting.append((b"%d" % number, decision.server))
        loads = {load.server: load.in_flight for load in core.loads()}
        assert loads[decision.server_name] <= math.ceil(factor * sum(loads.values()) / 5)


def homes(core: RoutingCore, count: int = 2000) -> dict[str, str]:
    found = {}
    for number in range(count):
        session = f"x-session-id=session-{number}"
        found[session] = core.decide(b"r", worlds.request(session=session), 0.0).server_name.partition(".g")[0]
    return found


def test_a_replica_that_leaves_moves_its_own_sessions_only() -> None:
    before = homes(worlds.core(8, "session"))
    rest = [worlds.replica(f"p-{index}") for index in range(8) if index != 3]
    after = homes(worlds.core(0, "session", replicas=rest))
    moved = {session for session in before if before[session] != after[session]}
    assert moved == {session for session, home in before.items() if home == "p-3"}
    shares = Counter(before.values())
    assert len(shares) == 8
    assert max(shares.values()) < 1.6 * 2000 / 8


def test_sessions_find_their_replica_again_after_restarts_of_everything() -> None:
    one = homes(worlds.core(8, "session"))
    restarted = [worlds.replica(f"p-{index}", generation=9) for index in reversed(range(8))]
    assert homes(worlds.core(0, "session", replicas=restarted)) == one


def test_a_replica_that_comes_back_gets_its_sessions_back() -> None:
    core = worlds.core(4, "session")
    before = homes(core, 200)
    for state in ("draining", "ready"):
        replicas = [worlds.replica(f"p-{index}", state=state if index == 1 else "ready") for index in range(4)]
        core.install(worlds.topology(0, "session", replicas=replicas), 0.0)
        after = homes(core, 200)
        assert ("p-1" in after.values()) == (state == "ready")
    assert after == before


def tree_is_sound(root: Node, replicas: list[Replica]) -> None:
    held_nodes: Counter[Replica] = Counter()
    held_blocks: Counter[Replica] = Counter()
    below = [root]
    while below:
        node = below.pop()
        for first, child in node.children.items():
            assert child.parent is node
            assert child.run[:HASH_BYTES] == first
            assert child.holders
            if node is not root:
                assert child.holders.keys() <= node.holders.keys()
            below.append(child)
        for replica, children in node.holders.items():
            assert children == sum(replica in child.holders for child in node.children.values())
            assert (node in replica.leaves) == (children == 0)
            held_nodes[replica] += 1
            held_blocks[replica] += len(node.run) // HASH_BYTES
    for replica in replicas:
        assert replica.held_nodes == held_nodes[replica]
        assert replica.held_blocks == held_blocks[replica] <= replica.cache_blocks
        assert held_nodes[replica] > 0 or not replica.leaves


@checked
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=9)),
            st.tuples(st.integers(0, 3), st.none()),
        ),
        max_size=40,
    ),
    st.integers(3, 30),
)
def test_prefix_tree_keeps_its_invariant(script: list[tuple[int, list[int] | None]], cache_blocks: int) -> None:
    replicas = [Replica(worlds.replica(f"p-{index}"), index) for index in range(4)]
    share_nodes(replicas)
    for replica in replicas:
        replica.cache_blocks = cache_blocks
    root = new_root()
    for which, blocks in script:
        replica = replicas[which]
        if blocks is None:
            release_all(replica)
            assert not replica.held_blocks
        else:
            hashes = worlds.chain(blocks)
            hold(root, replica, hashes, match(root, hashes))
            fits = hashes[: cache_blocks * HASH_BYTES]
            deepest = max(depth for holders, depth in parts(match(root, hashes)) if replica in holders)
            assert deepest == len(fits)
        tree_is_sound(root, replicas)


def test_many_prompts_stay_within_a_replicas_share() -> None:
    replica = Replica(worlds.replica("p-0", kv_capacity_tokens=1024 * 40), 1)
    replica.cache_nodes = 16
    root = new_root()
    for number in range(500):
        hashes = worlds.chain([number % 7, number, number + 1])
        hold(root, replica, hashes, match(root, hashes))
        tree_is_sound(root, [replica])
    assert replica.held_nodes <= 16


def test_the_deepest_of_several_holders_is_found() -> None:
    core = worlds.core(4, "prefix", parameters={"load_weight": 0.01})
    first = core.decide(b"1", worlds.request(blocks=["s", 1, 2, 3]), 0.0)
    assert core.decide(b"2", worlds.request(blocks=["s", 1, 2, 3, 4]), 0.0) is first
    other = core.decide(b"3", worlds.request(blocks=["t"]), 0.0)
    assert other is not first
    assert core.decide(b"4", worlds.request(blocks=["s", 1, 2, 3, 4, 5]), 0.0) is first


def test_a_last_block_that_is_not_full_does_not_break_a_conversation() -> None:
    core = worlds.core(4, "prefix")
    short = worlds.request(blocks=["s", 1, 2, "tail"])._replace(prompt_bytes=3 * 4096 + 7)
    first = core.decide(b"1", short, 0.0)
    longer = worlds.request(blocks=["s", 1, 2, 3, 4])
    assert core.decide(b"2", longer, 0.0) is first
    receipt = core.receipt(b"2")
    assert receipt is not None
    assert [signal.value for signal in receipt.candidates[0].signals if signal.name == "prefix_blocks_hit"] == [3]


def info(**changes: object) -> ReplicaInfo:
    return worlds.replica("p-0", **changes)  # type: ignore[arg-type]


def test_cache_size_comes_from_the_engine() -> None:
    assert Replica(info(kv_capacity_tokens=1024 * 100), 1).cache_blocks == 100
    assert Replica(info(), 1).cache_blocks == 512
