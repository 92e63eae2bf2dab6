"""The agent owns HAProxy: the real one, with the real agent as a process."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import signal
import socket
from collections.abc import Sequence

from dataplane.gateway import runtime
from dataplane.gateway.errors import GatewayError
from dataplane.launchers import procfs
from dataplane.launchers.records import Records
from dataplane.names import server_name
from dataplane.node.losses import servers_lost
from dataplane.pb import gateway_pb2, node_pb2, topology_pb2
from dataplane.state_dir import StateDir
from tests.dataplane.launchers.waiting import eventually
from tests.dataplane.node.conftest import Agent
from tests.dataplane.node.controller import DEADLINE_S, Controller
from tests.dataplane.node.engine_script import order
from tests.ports import lease


def replica(name: str, generation: int, port: int, group: str = "") -> topology_pb2.Replica:
    return topology_pb2.Replica(
        name=name,
        server=server_name(name, generation),
        model="tiny",
        pool="tiny",
        node="local",
        group=group or name,
        generation=generation,
        host="127.0.0.1",
        port=port,
        state=topology_pb2.REPLICA_STATE_READY,
        kind=topology_pb2.ENGINE_KIND_SIMULATED,
    )


def gateway(port: int, number: int, replicas: Sequence[topology_pb2.Replica]) -> gateway_pb2.GatewayOrder:
    pool = topology_pb2.Pool(name="tiny", role=topology_pb2.ROLE_MIXED)
    return gateway_pb2.GatewayOrder(
        gateway=gateway_pb2.Gateway(
            name="gw",
            node="local",
            listeners=[gateway_pb2.Listener(host="127.0.0.1", port=port)],
            threads=1,
            max_body_bytes=32 << 20,
            buffer_bytes=1 << 20,
            decision_timeout_ms=500,
            connect_timeout_ms=1000,
            silence_timeout_s=60,
            queue_timeout_s=10,
            drain_timeout_s=60,
        ),
        topology=topology_pb2.Topology(
            number=number,
            cluster="test",
            models=[topology_pb2.Model(name="tiny", pools=[pool], routing=topology_pb2.Routing(policy="round_robin"))],
            replicas=replicas,
        ),
    )


def statuses(report: node_pb2.NodeReport) -> dict[str, str]:
    return {server.server: server.status.split()[0] for server in report.gateway.servers}


async def until_servers(state: StateDir, **wanted: str) -> None:
    """Wait until HAProxy itself says so of exactly these servers (``a_0_g1="UP"``)."""
    names = {re.sub(r"_g(\d+)$", r".g\1", name).replace("_", "-"): status for name, status in wanted.items()}
    told: dict[str, str] = {}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while loop.time() < deadline:
        try:
            answer = await runtime.ask(state.haproxy_socket, "show stat tiny 4 -1")
        except GatewayError:
            answer = ""  # it is being started
        rows = csv.DictReader(answer.removeprefix("# ").splitlines())
        told = {row["svname"]: row["status"].split()[0] for row in rows}
        if told == names:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(told)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def workers_of(master: int) -> list[int]:
    return [process.pid for process in procfs.every() if process.parent == master and not process.dead]


async def test_haproxy_is_started_kept_and_ended(agent: Agent, controller: Controller, state: StateDir) -> None:
    front, back = lease(2)
    await controller.order(gateway=gateway(front, 7, [replica("a-0", 1, back)]))
    first = (await controller.heard(lambda report: report.gateway.ready)).gateway
    assert (first.gateway, first.topology_number, first.error) == ("gw", 7, "")
    assert listens(front)
    record = Records(state).read("haproxy")
    assert record is not None
    assert (record.pid, record.role) == (first.pid, "haproxy")

    os.kill(first.pid, signal.SIGKILL)
    second = await controller.heard(lambda report: report.gateway.ready and report.gateway.pid != first.pid)
    assert listens(front)
    (worker,) = workers_of(second.gateway.pid)
    os.kill(worker, signal.SIGKILL)
    third = await controller.heard(lambda report: report.gateway.ready and report.gateway.pid != second.gateway.pid)
    assert third.gateway.topology_number == 7
    assert listens(front)

    await controller.order()
    await controller.heard(lambda report: not report.HasField("gateway") and report.orders_number == 2)
    await eventually(lambda: not listens(front))
    await eventually(lambda: Records(state).all() == [])


async def test_haproxy_outlives_the_agent_and_is_adopted(agent: Agent, controller: Controller) -> None:
    front, back = lease(2)
    await controller.order(gateway=gateway(front, 1, [replica("a-0", 1, back)]))
    before = await controller.heard(lambda report: report.gateway.ready)
    agent.end(signal.SIGKILL)
    assert listens(front)
    controller.reports.clear()
    agent.start()
    after = await controller.heard(lambda report: report.gateway.ready)
    assert after.gateway.pid == before.gateway.pid
    await controller.order(gateway=gateway(front, 2, [replica("a-0", 1, back), replica("a-1", 1, back)]))
    last = await controller.heard(lambda report: report.gateway.topology_number == 2)
    assert last.gateway.pid == before.gateway.pid
    await controller.heard(lambda report: statuses(report).keys() == {"a-0.g1", "a-1.g1"})


async def test_a_lost_replica_is_taken_out_with_its_gang_and_without_the_controller(
    agent: Agent, controller: Controller, state: StateDir, program: str
) -> None:
    front, *ports = lease(4)
    engines = [order(program, f"a-{i}", 1, port) for i, port in enumerate(ports)]
    replicas = [replica(f"a-{i}", 1, port, group="g" if i < 2 else "") for i, port in enumerate(ports)]
    await controller.order(*engines)
    told = await controller.until(a_0="READY", a_1="READY", a_2="READY")
    await controller.order(*engines, gateway=gateway(front, 1, replicas))
    await until_servers(state, a_0_g1="UP", a_1_g1="UP", a_2_g1="UP")
    os.kill(told["a-0"].pid, signal.SIGKILL)
    # No new orders are given: the node does this by itself.
    out = {"a_0_g1": "MAINT", "a_1_g1": "MAINT", "a_2_g1": "UP"}
    await until_servers(state, **out)
    # Orders that do not know it yet change nothing.
    await controller.order(*engines, gateway=gateway(front, 2, replicas))
    await controller.heard(lambda report: report.gateway.topology_number == 2)
    await until_servers(state, **out)
    # Over a restart of the agent and of HAProxy too.
    agent.end(signal.SIGKILL)
    controller.reports.clear()
    agent.start()
    before = await controller.heard(lambda report: report.gateway.ready)
    await until_servers(state, **out)
    os.kill(before.gateway.pid, signal.SIGKILL)
    await controller.heard(lambda report: report.gateway.ready and report.gateway.pid != before.gateway.pid)
    await until_servers(state, **out)
    # A new generation serves.
    engines[:2] = [order(program, f"a-{i}", 2, ports[i]) for i in range(2)]
    replicas[:2] = [replica(f"a-{i}", 2, ports[i], group="g") for i in range(2)]
    await controller.order(*engines, gateway=gateway(front, 3, replicas))
    await until_servers(state, a_0_g2="UP", a_1_g2="UP", a_2_g1="UP")
    await controller.heard(lambda report: report.gateway.topology_number == 3)


async def test_an_order_that_cannot_be_served_leaves_the_last_one(agent: Agent, controller: Controller) -> None:
    front, back = lease(2)
    await controller.order(gateway=gateway(front, 1, [replica("a-0", 1, back)]))
    before = await controller.heard(lambda report: report.gateway.ready)
    broken = gateway(front, 2, [replica("a-0", 1, back)])
    broken.gateway.listeners.append(gateway_pb2.Listener(host="127.0.0.1", port=front, certificate="/nonexistent.pem"))
    await controller.order(gateway=broken)
    refused = await controller.heard(lambda report: report.gateway.error)
    assert refused.gateway.topology_number == 1
    assert refused.gateway.pid == before.gateway.pid
    # HAProxy's death meanwhile brings back what served last, not nothing.
    os.kill(before.gateway.pid, signal.SIGKILL)
    await controller.heard(lambda report: report.gateway.pid not in {0, before.gateway.pid})
    await eventually(lambda: listens(front))
    await controller.order(gateway=gateway(front, 3, [replica("a-0", 1, back)]))
    await controller.heard(lambda report: report.gateway.topology_number == 3 and not report.gateway.error)


def test_a_gang_is_lost_with_any_of_its_ranks() -> None:
    replicas = [replica("a-0", 1, 1, "g"), replica("a-1", 1, 2, "g"), replica("b-0", 1, 3), replica("a-2", 2, 4, "g")]
    topology = topology_pb2.Topology(replicas=replicas)
    assert servers_lost(topology, ["a-1.g1"]) == ["a-0.g1", "a-1.g1"]
    assert servers_lost(topology, ["b-0.g1"]) == ["b-0.g1"]
    assert servers_lost(topology, ["unknown.g1"]) == []
    assert servers_lost(topology_pb2.Topology(replicas=[topology_pb2.Replica(server="x.g1", generation=1)]), []) == []
