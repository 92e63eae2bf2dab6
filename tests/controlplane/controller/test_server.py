from __future__ import annotations

import asyncio
import socket
import stat

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.controller import topology_board
from dataplane.pb import node_pb2, node_pb2_grpc, topology_pb2, topology_pb2_grpc
from tests.controlplane.controller.agent import until
from tests.controlplane.controller.conftest import Bench


async def test_only_the_owner_reaches_the_socket(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX) as stale:  # what a killed controller leaves
        stale.bind(str(bench.state.controller_socket))
    await bench.start()
    assert stat.S_IMODE(bench.state.controller_socket.stat().st_mode) == 0o600
    await bench.apply(1)


async def test_health_and_reflection(bench: Bench) -> None:
    await bench.start()
    health = health_pb2_grpc.HealthStub(bench.channel())
    for service in ("", "slipstream.v1.AdminService", "slipstream.v1.NodeService", "slipstream.v1.TopologyService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(bench.channel())
    call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {s.name async for answer in call for s in answer.list_services_response.service}
    assert names >= {"slipstream.v1.AdminService", "grpc.health.v1.Health"}


async def test_a_node_must_have_a_name_and_keep_it(bench: Bench) -> None:
    await bench.start()
    stub = node_pb2_grpc.NodeServiceStub(bench.channel())
    for names in (["bad name\n"], [""], ["local", "other"]):
        call = stub.Connect(iter([node_pb2.NodeReport(node=name) for name in names]))
        with pytest.raises(aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_node_that_no_spec_names_gets_no_orders(bench: Bench) -> None:
    controller = await bench.start()
    stranger = bench.agent("stranger")
    agent = bench.agent()
    await bench.apply(1)
    await until(lambda: agent.taken, "the known node has orders")
    await until(lambda: "stranger" in controller.nodes.nodes, "the stranger reports")
    looks = controller.reconciler.counts.looks
    controller.reconciler.wake()
    await until(lambda: controller.reconciler.counts.looks > looks, "another look")
    assert stranger.taken == []
    await stranger.disconnect()


async def test_the_newest_stream_of_a_node_is_the_live_one(bench: Bench) -> None:
    controller = await bench.start()
    stub = node_pb2_grpc.NodeServiceStub(bench.channel())

    async def reports(pid: int):  # type: ignore[no-untyped-def]
        yield node_pb2.NodeReport(node="local", pid=pid)
        await asyncio.Event().wait()

    first = stub.Connect(reports(1))
    await until(lambda: "local" in controller.nodes.nodes, "heard")
    second = stub.Connect(reports(2))
    assert await first.read() is aio.EOF
    assert controller.nodes.nodes["local"].report.pid == 2  # type: ignore[union-attr]
    assert controller.nodes.nodes["local"].link is not None
    second.cancel()
    await until(lambda: "local" not in controller.nodes.nodes or not controller.nodes.nodes["local"].link, "gone")


async def test_watchers_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology_board, "MAX_WATCHERS", 1)
    controller = await bench.start()
    stub = topology_pb2_grpc.TopologyServiceStub(bench.channel())
    first = stub.Watch(topology_pb2.WatchTopologyRequest())
    await until(lambda: controller.board.watchers == 1, "one watches")
    second = stub.Watch(topology_pb2.WatchTopologyRequest())
    with pytest.raises(aio.AioRpcError) as caught:
        await second.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()


async def test_an_unforeseen_failure_tells_no_details(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await bench.start()

    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(controller.views, "get", broken)
    from dataplane.pb import admin_pb2

    with pytest.raises(aio.AioRpcError) as caught:
        await bench.admin().Get(admin_pb2.GetRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "the controller failed"
