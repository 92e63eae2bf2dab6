from __future__ import annotations

from grpc import aio

from controlplane.controller.nodes import NODE_LOST_S
from dataplane.pb import admin_pb2, topology_pb2, topology_pb2_grpc
from tests.controlplane.controller.agent import FAILED, READY, STARTING, until
from tests.controlplane.controller.conftest import Bench, SkippingClock

TWO_READY = {"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "ready"}


def _pool(replicas: int, **engine: object) -> list[dict[str, object]]:
    pool = {"name": "tiny-mixed", "replicas": replicas, "engine": {"kind": "simulated"} | engine}
    return [{"name": "tiny", "pools": [pool]}]


async def _read(
    call: aio.UnaryStreamCall[topology_pb2.WatchTopologyRequest, topology_pb2.Topology],
) -> topology_pb2.Topology:
    topology = await call.read()
    assert isinstance(topology, topology_pb2.Topology)
    return topology


async def test_apply_orders_reports_and_topology(bench: Bench) -> None:
    controller = await bench.start()
    agent = bench.agent()
    applied = await bench.apply(2)
    assert applied.revision == 1
    assert [(c.action, c.subject) for c in applied.changes if c.action == "start"] == [
        ("start", "replica/tiny-mixed-0"),
        ("start", "replica/tiny-mixed-1"),
    ]
    await bench.until_states(TWO_READY)
    await until(lambda: agent.orders.gateway.topology == controller.board.current, "the gateway has the topology")
    assert agent.started == ["tiny-mixed-0.g1", "tiny-mixed-1.g2"]
    assert [o.launch.port for o in agent.orders.engines] == [21000, 21001]
    assert agent.orders.gateway.gateway.node == "local"


async def test_a_pools_connection_limit_reaches_the_gateway_and_restarts_nothing(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    limited = [{"name": "tiny", "pools": [_pool(2)[0]["pools"][0] | {"max_connections": 7}]}]  # type: ignore[index]
    await bench.apply(2, models=limited)
    await until(
        lambda: {r.max_connections for r in agent.orders.gateway.topology.replicas} == {7}, "the gateway has the limit"
    )
    assert agent.started == ["tiny-mixed-0.g1", "tiny-mixed-1.g2"]


async def test_ready_only_when_the_node_says_so_of_this_generation(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent(first_state=STARTING)
    await bench.apply(2)
    await bench.until_states({"tiny-mixed-0.g1": "starting", "tiny-mixed-1.g2": "starting"})
    agent.obedient = False
    agent.engines["tiny-mixed-1"].generation = 1  # READY, but of another generation: it says nothing of g2
    agent.set_state("tiny-mixed-1", READY)
    agent.set_state("tiny-mixed-0", READY)
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "pending"})


async def test_a_crash_leaves_rotation_at_once_and_returns_as_a_new_generation(bench: Bench) -> None:
    clock = SkippingClock()
    controller = await bench.start(clock)
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    agent.crash("tiny-mixed-0")
    await bench.until_states({"tiny-mixed-0.g1": "failed", "tiny-mixed-1.g2": "ready"})
    bench.skip(clock, 1.0)
    await bench.until_states({"tiny-mixed-0.g3": "ready", "tiny-mixed-1.g2": "ready"})
    assert agent.started == ["tiny-mixed-0.g1", "tiny-mixed-1.g2", "tiny-mixed-0.g3"]
    reasons = [e.reason for e in controller.events.about("replica/tiny-mixed-0", 50)]
    assert "replica_failed" in reasons
    assert "restart" in reasons
    failed = next(e for e in controller.events.about("replica/tiny-mixed-0", 50) if e.reason == "replica_failed")
    assert failed.message == "tiny-mixed-0.g1: ended by signal 9; exit code -9"


async def test_a_restarted_controller_touches_no_replica(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    before = bench.number()
    await bench.stop()
    await agent.disconnect()
    again = await bench.start()
    await until(lambda: again.reconciler.counts.looks >= 1, "it looked")
    assert bench.number() == 0, "nothing was heard yet, so nothing may be published"
    agent.connect()
    await bench.until_states(TWO_READY)
    assert bench.number() > before
    await until(lambda: agent.orders.gateway.topology == again.board.current, "the gateway has the topology")
    assert again.reconciler.counts.actions == 0
    assert agent.started == ["tiny-mixed-0.g1", "tiny-mixed-1.g2"]
    assert agent.stopped == []


async def test_scale_down_waits_for_the_streams(bench: Bench) -> None:
    clock = SkippingClock()
    await bench.start(clock)
    agent = bench.agent()
    agent.streams["tiny-mixed-1.g2"] = 3
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    answer = await bench.admin().Scale(admin_pb2.ScaleRequest(pool="tiny-mixed", replicas=1))
    assert [c.action for c in answer.changes] == ["change_pool", "drain", "stop"]
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "draining"})
    bench.skip(clock, 5)
    taken = len(agent.taken)
    agent.report()
    await until(lambda: agent.orders.gateway.topology.replicas[1].state != READY, "the gateway knows")
    assert agent.stopped == []
    agent.streams["tiny-mixed-1.g2"] = 0
    agent.report()
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    assert agent.stopped == ["tiny-mixed-1.g2"]
    assert len(agent.taken) > taken


async def test_a_drain_ends_at_its_deadline(bench: Bench) -> None:
    clock = SkippingClock()
    await bench.start(clock)
    agent = bench.agent()
    agent.streams["tiny-mixed-1.g2"] = 3
    gateway = {"drain_timeout_s": 30}
    await bench.apply(2, gateway=gateway)
    await bench.until_states(TWO_READY)
    await bench.apply(1, gateway=gateway)
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "draining"})
    bench.skip(clock, 31)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    assert agent.stopped == ["tiny-mixed-1.g2"]


async def test_another_engine_is_rolled_out_one_replica_at_a_time(bench: Bench) -> None:
    controller = await bench.start()
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    seen_ready: list[int] = []
    publish = controller.board.publish

    def watched(topology: topology_pb2.Topology) -> None:
        ready = [r.server for r in topology.replicas if r.state == READY]
        assert set(ready) <= set(agent.started), "a generation is published before it runs"
        seen_ready.append(len(ready))
        publish(topology)

    controller.board.publish = watched  # type: ignore[method-assign]
    applied = await bench.apply(2, models=_pool(2, max_running=7))
    assert [(c.action, c.subject) for c in applied.changes] == [
        ("change_pool", "pool/tiny-mixed"),
        ("drain", "replica/tiny-mixed-0"),
        ("restart", "replica/tiny-mixed-0"),
        ("drain", "replica/tiny-mixed-1"),
        ("restart", "replica/tiny-mixed-1"),
    ]
    await bench.until_states({"tiny-mixed-0.g3": "ready", "tiny-mixed-1.g4": "ready"})
    assert min(seen_ready) == 1
    assert [o.launch.simulated.max_running for o in agent.orders.engines] == [7, 7]
    assert [o.launch.port for o in agent.orders.engines] == [21000, 21001]


async def test_a_replica_keeps_its_launch_until_it_is_replaced(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    agent.streams = {"tiny-mixed-0.g1": 1, "tiny-mixed-1.g2": 1}
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    await bench.apply(2, models=_pool(2, max_running=7))
    await bench.until_states({"tiny-mixed-0.g1": "draining", "tiny-mixed-1.g2": "ready"})
    await until(lambda: agent.orders.gateway.topology.replicas[0].state != READY, "the gateway knows")
    assert [o.launch.simulated.max_running for o in agent.orders.engines] == [256, 256]


async def test_a_removed_model_stays_known_until_its_streams_end(bench: Bench) -> None:
    controller = await bench.start()
    agent = bench.agent()
    agent.streams = {"tiny-mixed-0.g1": 1}
    await bench.apply(1)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    other = [{"name": "other", "pools": [{"name": "other-mixed", "engine": {"kind": "simulated"}}]}]
    await bench.apply(1, models=other)
    await bench.until_states({"other-mixed-0.g2": "ready", "tiny-mixed-0.g1": "draining"})
    current = controller.board.current
    assert current is not None
    assert [(m.name, [p.name for p in m.pools]) for m in current.models] == [
        ("other", ["other-mixed"]),
        ("tiny", ["tiny-mixed"]),
    ]
    agent.streams = {}
    await bench.until_states({"other-mixed-0.g2": "ready"})
    assert [m.name for m in controller.board.current.models] == ["other"]  # type: ignore[union-attr]


async def test_a_lost_node_fails_its_replicas_and_nothing_starts_elsewhere(bench: Bench) -> None:
    clock = SkippingClock()
    await bench.start(clock)
    nodes = [
        {"name": "a", "address": "10.0.0.1"},
        {"name": "b", "address": "10.0.0.2"},
    ]
    first, second = bench.agent("a"), bench.agent("b")
    await bench.apply(2, nodes=nodes)
    await bench.until_states(TWO_READY)
    await second.disconnect()
    bench.skip(clock, NODE_LOST_S)
    first.report()
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "failed"})
    bench.skip(clock, 100)
    first.report()
    answer = await bench.admin().Get(admin_pb2.GetRequest(kind=admin_pb2.KIND_NODE))
    assert [(n.name, n.connected) for n in answer.nodes] == [("a", True), ("b", False)]
    second.connect()
    await bench.until_states(TWO_READY)
    assert first.started == ["tiny-mixed-0.g1"]
    assert second.started == ["tiny-mixed-1.g2"]
    assert first.stopped == second.stopped == []


async def test_a_controller_that_hears_nobody_keeps_what_it_published(bench: Bench) -> None:
    clock = SkippingClock()
    controller = await bench.start(clock)
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    await until(lambda: agent.orders.gateway.topology == controller.board.current, "the gateway has the topology")
    await agent.disconnect()
    number = bench.number()
    bench.skip(clock, 100)
    await until(lambda: any(e.reason == "node_lost" for e in controller.events.newest(10)), "the loss is told")
    looks = controller.reconciler.counts.looks
    controller.reconciler.wake()
    await until(lambda: controller.reconciler.counts.looks > looks, "another look")
    assert bench.states() == TWO_READY
    assert bench.number() == number


async def test_after_a_restart_an_unheard_node_does_not_hold_the_others_for_ever(bench: Bench) -> None:
    nodes = [{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.2"}]
    await bench.start()
    first, second = bench.agent("a"), bench.agent("b")
    await bench.apply(2, nodes=nodes)
    await bench.until_states(TWO_READY)
    await bench.stop()
    await second.disconnect()
    clock = SkippingClock()
    again = await bench.start(clock)
    await until(lambda: "a" in again.nodes.nodes and again.nodes.nodes["a"].report, "a reports")
    assert again.board.current is None
    bench.skip(clock, NODE_LOST_S)
    first.report()
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "failed"})


async def test_external_endpoints_are_probed_and_never_restarted(bench: Bench) -> None:
    clock = SkippingClock()
    controller = await bench.start(clock)
    agent = bench.agent()
    engine = {"kind": "external", "endpoints": ["http://127.0.0.1:9555"], "max_running": 9}
    models = [{"name": "tiny", "pools": [{"name": "outside", "engine": engine}]}]
    await bench.apply(models=models)
    await bench.until_states({"outside-0.g1": "ready"})
    (order,) = agent.orders.engines
    assert list(order.external_endpoint) == ["127.0.0.1:9555"]
    assert order.launch.kind == topology_pb2.ENGINE_KIND_EXTERNAL
    (replica,) = controller.board.current.replicas  # type: ignore[union-attr]
    assert (replica.max_running, replica.middleware, replica.node) == (9, False, "local")
    agent.set_state("outside-0", FAILED)
    await bench.until_states({"outside-0.g1": "failed"})
    bench.skip(clock, 1000)
    agent.set_state("outside-0", READY)
    await bench.until_states({"outside-0.g1": "ready"})


async def test_a_lost_store_repeats_no_generation_that_still_runs(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    await bench.stop()
    bench.state.database.unlink()
    again = await bench.start()
    await until(lambda: "local" in again.nodes.nodes, "the agent is back")
    assert agent.stopped == [], "a controller without a spec orders nothing"
    await bench.apply(2)
    await bench.until_states({"tiny-mixed-0.g3": "ready", "tiny-mixed-1.g4": "ready"})


async def test_watchers_get_the_newest_topology_and_then_each_newer_one(bench: Bench) -> None:
    controller = await bench.start()
    agent = bench.agent()
    await bench.apply(1)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    stub = topology_pb2_grpc.TopologyServiceStub(bench.channel())
    number = bench.number()
    call = stub.Watch(topology_pb2.WatchTopologyRequest(subscriber="test", after_number=number - 1))
    first = await _read(call)
    assert first.number == number
    agent.crash("tiny-mixed-0")
    second = await _read(call)
    assert second.number > number
    assert second.replicas[0].state == FAILED
    call.cancel()
    await until(lambda: controller.board.watchers == 0, "the watcher is forgotten")
