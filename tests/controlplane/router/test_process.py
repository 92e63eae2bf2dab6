from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.router import topology_file
from dataplane.pb import routing_pb2 as pb
from dataplane.pb.routing_pb2_grpc import RoutingServiceStub
from dataplane.pb.topology_pb2 import Topology
from dataplane.state_dir import StateDir
from tests.controlplane.router import world
from tests.controlplane.router.controller import serving
from tests.controlplane.router.gateway import haproxy, replicas, request, state_dir, until
from tests.controlplane.router.peer import Peer

if TYPE_CHECKING:
    from dataplane.pb.routing_pb2_grpc import RoutingServiceAsyncStub


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return state_dir(tmp_path)


def start(state: StateDir) -> subprocess.Popen[bytes]:
    with (state.logs / "router.log").open("ab") as log:
        command = [sys.executable, "-m", "controlplane.router", "--state-dir", str(state.root)]
        return subprocess.Popen(command, stderr=log, stdout=log)


@contextmanager
def router(state: StateDir) -> Iterator[subprocess.Popen[bytes]]:
    process = start(state)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.wait()


def log_of(state: StateDir) -> str:
    return (state.logs / "router.log").read_text()


async def connected(state: StateDir) -> Peer:
    """Shake hands with the router that starts or starts again."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            return await Peer.ready(state.spop_socket)
        except OSError:
            assert asyncio.get_running_loop().time() < deadline, log_of(state)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def api(state: StateDir) -> AsyncIterator[RoutingServiceAsyncStub]:
    async with grpc.aio.insecure_channel(f"unix:{state.router_socket}") as channel:
        await until(state.router_socket.exists, "the router serves gRPC")
        yield RoutingServiceStub(channel)


async def status(stub: RoutingServiceAsyncStub) -> pb.RouterStatusResponse:
    return await stub.Status(pb.RouterStatusRequest())


def saved_number(state: StateDir) -> int:
    saved = topology_file.read(world.topology_path(state))
    return 0 if saved is None else saved.number


async def until_number(stub: RoutingServiceAsyncStub, number: int) -> pb.RouterStatusResponse:
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        answer = await status(stub)
        if answer.topology_number == number:
            return answer
        assert asyncio.get_running_loop().time() < deadline, answer
        await asyncio.sleep(0.02)


async def test_serves_from_disk_without_a_controller(state: StateDir) -> None:
    topology_file.write(world.topology_path(state), world.topology(7))
    with router(state) as process:
        peer = await connected(state)
        assert "srv" in await peer.ask(b"r1", world.record())
        async with api(state) as stub:
            answer = await status(stub)
            assert (answer.topology_number, answer.topology_from_disk, answer.decisions) == (7, True, 1)
        for path in (state.spop_socket, state.log_socket, state.router_socket):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await peer.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not list(state.run.iterdir())


async def test_follows_the_controller_and_keeps_what_it_heard(state: StateDir) -> None:
    with router(state):
        async with api(state) as stub:
            peer = await connected(state)
            assert await peer.ask(b"r0", world.record()) == {}, "HAProxy knows more than a router without a topology"
            async with serving(state, world.topology(1)) as controller:
                await until_number(stub, 1)
                await controller.publish(world.topology(3, servers=[("tiny-mixed-0.g9", 1)]))
                answer = await until_number(stub, 3)
                assert not answer.topology_from_disk
                assert (await peer.ask(b"r1", world.record()))["srv"] == b"tiny-mixed-0.g9"
                await controller.publish(world.topology(2, published_unix_ms=1))
                await until(lambda: "refused" in log_of(state), "the old topology is refused")
            assert (await peer.ask(b"r2", world.record()))["srv"] == b"tiny-mixed-0.g9"
            async with serving(state, world.topology(4)) as controller:
                await until_number(stub, 4)
                assert controller.requests[0].after_number == 0
            await until(lambda: saved_number(state) == 4, "it is on disk")
            await peer.close()


async def test_a_corrupt_topology_on_disk_is_ignored(state: StateDir) -> None:
    path = world.topology_path(state)
    topology_file.write(path, world.topology(5))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with router(state):
        peer = await connected(state)
        assert "ignored" in log_of(state)
        async with serving(state, world.topology(1)), api(state) as stub:
            await until_number(stub, 1)
            assert "srv" in await peer.ask(b"r", world.record())
        await peer.close()


async def test_a_disk_that_takes_nothing_does_not_stop_the_router(state: StateDir) -> None:
    with router(state) as process:
        scratch = f".topology.pb.{process.pid}.tmp"
        world.topology_path(state).with_name(scratch).mkdir()  # the write fails, for root as well
        async with serving(state, world.topology(1)), api(state) as stub:
            await until_number(stub, 1)
            await until(lambda: "cannot be kept on disk" in log_of(state), "the failure is told")
            peer = await connected(state)
            assert "srv" in await peer.ask(b"r", world.record())
            await peer.close()


async def test_a_killed_router_leaves_no_trace_that_stops_the_next(state: StateDir) -> None:
    topology_file.write(world.topology_path(state), world.topology())
    for _ in range(2):
        with router(state) as process:
            peer = await connected(state)
            assert "srv" in await peer.ask(b"r", world.record())
            await peer.close()
            process.kill()
            process.wait()
            assert state.spop_socket.exists()


async def test_a_second_router_gives_up(state: StateDir) -> None:
    with router(state):
        await (await connected(state)).close()
        with router(state) as second:
            await until(lambda: second.poll() is not None, "the second one ends")
            assert second.returncode == 1
            assert "already runs" in log_of(state)
        assert state.spop_socket.exists()


async def test_health_and_reflection(state: StateDir) -> None:
    with router(state):
        async with api(state), grpc.aio.insecure_channel(f"unix:{state.router_socket}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            check = health_pb2.HealthCheckRequest(service="slipstream.v1.RoutingService")
            assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            async with serving(state, world.topology()):
                watched = health.Watch(check)
                seen = [(await watched.read()).status]
                if seen[0] != health_pb2.HealthCheckResponse.SERVING:
                    seen.append((await watched.read()).status)
                assert seen[-1] == health_pb2.HealthCheckResponse.SERVING
                watched.cancel()
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
            listed = (await call.read()).list_services_response.service
            assert "slipstream.v1.RoutingService" in {service.name for service in listed}
            call.cancel()


async def test_routing_through_haproxy_and_back(state: StateDir) -> None:
    async with replicas(3) as servers:
        topology_file.write(world.topology_path(state), world.topology(servers=servers))
        with router(state):
            async with haproxy(state, servers) as port, api(state) as stub:
                await until_used(port)
                ids = []
                for _ in range(9):
                    code, headers = await request(port, world.record())
                    assert code == 200
                    assert headers["x-got"] == headers["x-want"] != ""
                    ids.append(headers["x-id"].upper())
                code, headers = await request(port, world.record(b"", state=2, body_bytes=16), b'{"model":"tiny"}')
                assert (code, headers["x-got"]) == (200, headers["x-want"])
                for size in (10, 5_000, 120_000):
                    body = b'{"prompt": "' + b"x" * size + b'", "model": "tiny"}'
                    code, headers = await request(port, b"", body)
                    assert (code, headers["x-got"]) == (200, headers["x-want"])
                    assert headers["x-got"]
                code, headers = await request(port, world.record(b"none"))
                assert (code, headers["x-code"]) == (400, "model_not_found")
                await until_all_ended(stub, 13)
                receipt = await stub.Explain(pb.ExplainRequest(request_id=ids[0]))
                assert receipt.completion.status == 200
                assert receipt.completion.server == receipt.server


async def until_all_ended(stub: RoutingServiceAsyncStub, lines: int) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        answer = await status(stub)
        if answer.log_lines >= lines and not any(replica.in_flight for replica in answer.replicas):
            assert answer.log_lines_unmatched <= answer.log_lines - lines
            return
        assert asyncio.get_running_loop().time() < deadline, answer
        await asyncio.sleep(0.02)


async def test_nothing_is_lost_while_the_router_is_stopped_or_killed(state: StateDir) -> None:
    async with replicas(2) as servers:
        topology_file.write(world.topology_path(state), world.topology(servers=servers))
        async with haproxy(state, servers, timeout_ms=50) as port:
            with router(state) as process:
                await (await connected(state)).close()
                await until_used(port)
                os.kill(process.pid, signal.SIGSTOP)
                for _ in range(5):
                    assert (await request(port, world.record()))[0] == 200
                os.kill(process.pid, signal.SIGCONT)
                await until_used(port)
                process.kill()
                process.wait()
                for _ in range(5):
                    assert (await request(port, world.record()))[0] == 200
            with router(state):
                await until_used(port)


async def until_used(port: int) -> None:
    """Wait until the router's choice is what HAProxy does; every request meanwhile must succeed."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        code, headers = await request(port, world.record())
        assert code == 200
        if headers.get("x-want"):
            assert headers["x-got"] == headers["x-want"]
            return
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def test_route_explain_and_watch_over_grpc(state: StateDir) -> None:
    topology_file.write(world.topology_path(state), world.topology())
    with router(state):
        async with api(state) as stub:
            watch = stub.WatchReceipts(pb.WatchReceiptsRequest(model="tiny"))
            reading = asyncio.create_task(watch.read())
            answers: list[pb.RouteResponse] = []
            while not reading.done():
                answers.append(await stub.Route(pb.RouteRequest(kind="chat", body=b'{"model":"sql","messages":[]}')))
                await asyncio.sleep(0.02)
            first = await reading
            assert isinstance(first, pb.WatchReceiptsResponse)
            assert {receipt.adapter for receipt in first.receipts} == {"sql"}
            watch.cancel()
            assert {answer.outcome for answer in answers} == {"go"}
            assert answers[0].address in ("127.0.0.1:1001", "127.0.0.1:1002")
            receipt = await stub.Explain(pb.ExplainRequest(request_id=answers[0].request_id))
            assert (receipt.server, receipt.HasField("completion")) == (answers[0].server, False)
            refused = await stub.Route(pb.RouteRequest(kind="chat", model="nobody"))
            assert (refused.outcome, refused.error_code) == ("error", "model_not_found")
            for bad in (pb.RouteRequest(kind="nonsense"), pb.RouteRequest(kind="chat", request_id="a b")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Route(bad)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Explain(pb.ExplainRequest(request_id="never"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_log_lines_before_any_decision_are_only_counted(state: StateDir) -> None:
    with router(state):
        async with api(state) as stub:
            sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sender.connect(str(state.log_socket))
            sender.send(b"R x tiny-mixed <NOSRV> 503 -1 3 120 SC-- 0\n")
            sender.send(b"\x00\xff")
            deadline = asyncio.get_running_loop().time() + 20
            while (await status(stub)).log_lines_unmatched < 2:
                assert asyncio.get_running_loop().time() < deadline
            sender.close()


async def test_a_topology_that_cannot_be_used_changes_nothing(state: StateDir) -> None:
    with router(state):
        async with serving(state, world.topology(1)) as controller, api(state) as stub:
            await until_number(stub, 1)
            await controller.publish(Topology(number=2, cluster="test", replicas=world.topology().replicas))
            await until(lambda: "cannot be used" in log_of(state), "it is refused")
            await controller.publish(world.topology(3))
            await until_number(stub, 3)
