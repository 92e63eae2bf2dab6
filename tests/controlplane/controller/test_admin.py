from __future__ import annotations

import hashlib
from collections.abc import Awaitable

import grpc
import pytest
from grpc import aio

from controlplane.spec import to_json
from dataplane.pb import admin_pb2, gateway_pb2
from tests.controlplane.controller.agent import until
from tests.controlplane.controller.conftest import Bench, SkippingClock, cluster, spec_json

TWO_READY = {"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "ready"}
REPLICA, POOL, NODE = admin_pb2.KIND_REPLICA, admin_pb2.KIND_POOL, admin_pb2.KIND_NODE


def target(kind: admin_pb2.Kind.ValueType, name: str) -> admin_pb2.Target:
    return admin_pb2.Target(kind=kind, name=name)


async def refused(call: Awaitable[object], status: grpc.StatusCode, code: str) -> str:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is status
    assert dict(caught.value.trailing_metadata() or ())["slipstream-code"] == code
    return caught.value.details() or ""


async def test_plan_tells_and_changes_nothing(bench: Bench) -> None:
    controller = await bench.start()
    admin = bench.admin()
    first = await admin.Plan(admin_pb2.PlanRequest(spec_json=spec_json(1)))
    assert first.revision == 0
    assert "+cluster: test" in first.diff
    assert controller.ledger.revision == 0
    bench.agent()
    await bench.apply(1)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    gateway = {"silence_timeout_s": 77}
    second = await admin.Plan(admin_pb2.PlanRequest(spec_json=spec_json(2, gateway=gateway)))
    assert [(c.action, c.subject) for c in second.changes] == [
        ("change_pool", "pool/tiny-mixed"),
        ("change_gateway", "gateway"),
        ("start", "replica/tiny-mixed-1"),
    ]
    assert second.changes[0].detail == "replicas: 1 -> 2"
    assert second.changes[2].detail == "on local at 127.0.0.1:21001 (wanted)"
    assert "-    replicas: 1\n+    replicas: 2\n" in second.diff
    assert second.revision == 1
    same = await admin.Plan(admin_pb2.PlanRequest(spec_json=spec_json(1)))
    assert (list(same.changes), same.diff) == ([], "")


async def test_a_plan_tells_what_has_no_place(bench: Bench) -> None:
    await bench.start()
    nodes = [{"name": "local", "ports": "21000-21001"}]
    spec = to_json(cluster(2, nodes=nodes))
    crowded = [{"name": "local", "ports": "21000-21001"}]
    admin = bench.admin()
    await admin.Apply(admin_pb2.ApplyRequest(spec_json=spec))
    await until(lambda: len(bench.states()) == 2, "placed")
    other = [
        {"name": "tiny", "pools": [{"name": "tiny-mixed", "replicas": 1, "engine": {"kind": "simulated"}}]},
        {"name": "new", "pools": [{"name": "new-mixed", "replicas": 1, "engine": {"kind": "simulated"}}]},
    ]
    planned = await admin.Plan(admin_pb2.PlanRequest(spec_json=to_json(cluster(nodes=crowded, models=other))))
    assert ("blocked", "replica/new-mixed-0") in [(c.action, c.subject) for c in planned.changes]


async def test_apply_is_idempotent_and_guards_the_revision(bench: Bench) -> None:
    await bench.start()
    admin = bench.admin()
    assert (await bench.apply(1)).revision == 1
    assert (await bench.apply(1)).revision == 1
    assert (await bench.apply(2)).revision == 2
    stale = admin_pb2.ApplyRequest(spec_json=spec_json(3), expected_revision=1)
    text = await refused(admin.Apply(stale), grpc.StatusCode.ABORTED, "conflict")
    assert "revision 2, not 1" in text


async def test_a_spec_that_cannot_be_carried_out_is_refused(bench: Bench) -> None:
    controller = await bench.start()
    await bench.apply(1)
    wrong = spec_json(1).replace('"parameters":{}', '"parameters":{"nope":1}')
    for spec, words in ((wrong, "nope"), (spec_json(1, cluster="other"), "state directory of its own")):
        apply = bench.admin().Apply(admin_pb2.ApplyRequest(spec_json=spec))
        assert words in await refused(apply, grpc.StatusCode.INVALID_ARGUMENT, "invalid_spec")
        plan = bench.admin().Plan(admin_pb2.PlanRequest(spec_json=spec))
        assert words in await refused(plan, grpc.StatusCode.INVALID_ARGUMENT, "invalid_spec")
    assert controller.ledger.revision == 1


async def test_text_that_is_no_spec_is_refused(bench: Bench) -> None:
    await bench.start()
    for text in ("", "[]", "{", '{"cluster": "x"}', "\x00", '{"cluster":"a\\n","models":[]}'):
        request = admin_pb2.ApplyRequest(spec_json=text)
        await refused(bench.admin().Apply(request), grpc.StatusCode.INVALID_ARGUMENT, "invalid_spec")


async def test_get_lists_everything(bench: Bench) -> None:
    await bench.start()
    bench.agent().streams = {"tiny-mixed-1.g2": 4}
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    admin = bench.admin()
    answer = await admin.Get(admin_pb2.GetRequest())
    assert [(m.name, m.replicas_ready, m.replicas_wanted) for m in answer.models] == [("tiny", 2, 2)]
    assert [(p.name, p.replicas_ready, p.replicas_wanted) for p in answer.pools] == [("tiny-mixed", 2, 2)]
    assert [v.replica.server for v in answer.replicas] == list(TWO_READY)
    assert [v.pid for v in answer.replicas] == [1001, 1002]
    assert [(n.name, n.connected, n.replicas, n.pid) for n in answer.nodes] == [("local", True, 2, 4242)]
    assert answer.gateways[0].gateway.listeners[0].port == 8000
    assert (answer.cluster, answer.revision) == ("test", 1)
    assert answer.topology_number == bench.number()
    one = await admin.Get(admin_pb2.GetRequest(kind=REPLICA, name="tiny-mixed-1"))
    assert [v.replica.name for v in one.replicas] == ["tiny-mixed-1"]
    assert not one.models
    missing = admin.Get(admin_pb2.GetRequest(kind=REPLICA, name="nope"))
    await refused(missing, grpc.StatusCode.NOT_FOUND, "not_found")


async def test_describe_has_spec_events_and_last_words(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    await bench.apply(1)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    agent.crash("tiny-mixed-0")
    await bench.until_states({"tiny-mixed-0.g1": "failed"})
    admin = bench.admin()
    answer = await admin.Describe(admin_pb2.DescribeRequest(kind=REPLICA, name="tiny-mixed-0"))
    assert [e.reason for e in answer.events][:2] == ["start", "replica_pending"]
    assert list(answer.log_lines) == ["boom"]
    assert "kind: simulated" in answer.spec_yaml
    for kind, name in ((admin_pb2.KIND_MODEL, "tiny"), (POOL, "tiny-mixed"), (NODE, "local")):
        assert (await admin.Describe(admin_pb2.DescribeRequest(kind=kind, name=name))).spec_yaml
    gateway = await admin.Describe(admin_pb2.DescribeRequest(kind=admin_pb2.KIND_GATEWAY, name="gateway"))
    assert "127.0.0.1:8000" in gateway.spec_yaml
    nothing = admin.Describe(admin_pb2.DescribeRequest(kind=REPLICA))
    await refused(nothing, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


async def test_drain_and_undrain_stop_nothing(bench: Bench) -> None:
    clock = SkippingClock()
    await bench.start(clock)
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    admin = bench.admin()
    answer = await admin.Drain(admin_pb2.DrainRequest(target=target(REPLICA, "tiny-mixed-0"), deadline_s=1))
    assert [(c.action, c.subject) for c in answer.changes] == [("drain", "replica/tiny-mixed-0")]
    await bench.until_states({"tiny-mixed-0.g1": "draining", "tiny-mixed-1.g2": "ready"})
    bench.skip(clock, 5)
    agent.report()
    assert bench.states()["tiny-mixed-0.g1"] == "draining"
    await bench.stop()  # the drain outlives the controller
    await bench.start(clock)
    await bench.until_states({"tiny-mixed-0.g1": "draining", "tiny-mixed-1.g2": "ready"})
    await bench.admin().Undrain(admin_pb2.UndrainRequest(target=target(POOL, "tiny-mixed")))
    await bench.until_states(TWO_READY)
    assert agent.stopped == []


async def test_a_drained_node_gets_no_new_replica(bench: Bench) -> None:
    await bench.start()
    nodes = [{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.2"}]
    bench.agent("a")
    bench.agent("b")
    await bench.apply(2, nodes=nodes)
    await bench.until_states(TWO_READY)
    await bench.admin().Drain(admin_pb2.DrainRequest(target=target(NODE, "b")))
    await bench.apply(4, nodes=nodes)
    await until(lambda: len(bench.states()) == 4, "placed")
    assert bench.controller is not None
    assert {r.node for r in bench.controller.ledger.records.values() if r.index >= 2} == {"a"}


async def test_restart_rolls_through_a_pool(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    await bench.apply(2)
    await bench.until_states(TWO_READY)
    answer = await bench.admin().Restart(admin_pb2.RestartRequest(target=target(POOL, "tiny-mixed")))
    assert [c.action for c in answer.changes] == ["restart", "restart"]
    await bench.until_states({"tiny-mixed-0.g3": "ready", "tiny-mixed-1.g4": "ready"})
    assert agent.stopped == ["tiny-mixed-0.g1", "tiny-mixed-1.g2"]
    found = await bench.admin().Get(admin_pb2.GetRequest(kind=REPLICA))
    assert [v.restarts for v in found.replicas] == [1, 1]


async def test_what_cannot_be_done_is_refused(bench: Bench) -> None:
    await bench.start()
    admin = bench.admin()
    scale = admin_pb2.ScaleRequest(pool="tiny-mixed", replicas=1)
    await refused(admin.Scale(scale), grpc.StatusCode.NOT_FOUND, "not_found")
    engine = {"kind": "external", "endpoints": ["http://127.0.0.1:9555"]}
    models = [
        {"name": "tiny", "pools": [{"name": "tiny-mixed", "engine": {"kind": "simulated"}}]},
        {"name": "far", "pools": [{"name": "outside", "engine": engine}]},
    ]
    await bench.apply(models=models)
    await until(lambda: len(bench.states()) == 2, "placed")
    bad, not_found = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    await refused(admin.Scale(admin_pb2.ScaleRequest(pool="nope", replicas=1)), not_found, "not_found")
    await refused(admin.Scale(admin_pb2.ScaleRequest(pool="outside", replicas=2)), bad, "invalid_request")
    await refused(admin.Scale(admin_pb2.ScaleRequest(pool="tiny-mixed", replicas=99_999)), bad, "invalid_request")
    for kind, name in ((REPLICA, "nope-0"), (POOL, "nope"), (NODE, "nope")):
        await refused(admin.Drain(admin_pb2.DrainRequest(target=target(kind, name))), not_found, "not_found")
    gateway = target(admin_pb2.KIND_GATEWAY, "gateway")
    await refused(admin.Undrain(admin_pb2.UndrainRequest(target=gateway)), bad, "invalid_request")
    outside = target(POOL, "outside")
    await refused(admin.Restart(admin_pb2.RestartRequest(target=outside)), bad, "invalid_request")
    late = admin_pb2.DrainRequest(target=outside, deadline_s=float("nan"))
    await refused(admin.Drain(late), bad, "invalid_request")


async def test_keys_are_shown_once_and_reach_the_gateway(bench: Bench) -> None:
    await bench.start()
    agent = bench.agent()
    declared = {"keys": [{"name": "fixed", "tenant": "ops", "sha256": "ab" * 32}]}
    await bench.apply(1, api_keys=declared)
    admin = bench.admin()
    made = await admin.CreateKey(admin_pb2.CreateKeyRequest(name="alice", tenant="team", priority="low"))
    assert made.key.sha256 == hashlib.sha256(made.secret.encode()).hexdigest()

    def names() -> list[tuple[str, bool]]:
        return [(k.name, k.from_spec) for k in agent.orders.gateway.api_keys]

    await until(lambda: names() == [("fixed", True), ("alice", False)], "the gateway has the key")
    listed = await admin.ListKeys(admin_pb2.ListKeysRequest())
    assert [(k.name, k.priority) for k in listed.keys] == [("alice", "low"), ("fixed", "")]
    assert [k.priority for k in agent.orders.gateway.api_keys] == ["", "low"]
    bad = grpc.StatusCode.INVALID_ARGUMENT
    await refused(admin.CreateKey(admin_pb2.CreateKeyRequest(name="x\n")), bad, "invalid_name")
    await refused(admin.CreateKey(admin_pb2.CreateKeyRequest(name="fixed")), bad, "invalid_request")
    await refused(admin.CreateKey(admin_pb2.CreateKeyRequest(name="y", priority="urgent")), bad, "invalid_request")
    again = admin.CreateKey(admin_pb2.CreateKeyRequest(name="alice"))
    await refused(again, grpc.StatusCode.ABORTED, "conflict")
    await refused(admin.RevokeKey(admin_pb2.RevokeKeyRequest(name="fixed")), bad, "invalid_request")
    await refused(admin.RevokeKey(admin_pb2.RevokeKeyRequest(name="no")), grpc.StatusCode.NOT_FOUND, "not_found")
    await admin.RevokeKey(admin_pb2.RevokeKeyRequest(name="alice"))
    await until(lambda: names() == [("fixed", True)], "the gateway lost the key")
    await bench.stop()
    files = [p for p in bench.state.root.rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if made.secret.encode() in p.read_bytes()]


async def test_a_watch_replays_and_follows(bench: Bench) -> None:
    await bench.start()
    bench.agent()
    await bench.apply(1)
    await bench.until_states({"tiny-mixed-0.g1": "ready"})
    call = bench.admin().Watch(admin_pb2.WatchRequest())
    reasons = []
    async for event in call:
        reasons.append(event.reason)
        if event.reason == "replica_ready":
            break
    assert reasons[0] == "spec_applied"
    last = event.number
    await bench.admin().CreateKey(admin_pb2.CreateKeyRequest(name="alice"))
    async for event in call:
        assert event.number == last + 1
        assert (event.subject, event.reason) == ("key/alice", "key_created")
        break
    call.cancel()


async def test_events_outlive_the_controller(bench: Bench) -> None:
    controller = await bench.start()
    await bench.apply(1)
    await until(lambda: not controller.events.unstored() and controller.events.newest(1), "stored")
    numbers = [e.number for e in controller.events.newest(100)]
    await bench.stop()
    again = await bench.start()
    assert [e.number for e in again.events.newest(100)][: len(numbers)] == numbers
    again.events.add("cluster", "test", "")
    assert again.events.newest(1)[0].number > numbers[-1]


def test_a_made_key_never_hides_one_of_the_spec() -> None:
    from controlplane.controller import convert
    from controlplane.store.base import StoredKey

    declared = cluster(api_keys={"keys": [{"name": "fixed", "tenant": "ops", "sha256": "ab" * 32}]})
    keys = convert.api_keys(declared, [StoredKey("fixed", "evil", "cd" * 32, 1), StoredKey("x", "y", "ab" * 32, 1)])
    assert [(k.name, k.tenant) for k in keys] == [("fixed", "ops")]
    assert isinstance(keys[0], gateway_pb2.ApiKey)
