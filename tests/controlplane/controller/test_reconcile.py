from __future__ import annotations

from dataplane.pb import admin_pb2, topology_pb2
from tests.controlplane.controller.agent import READY, until
from tests.controlplane.controller.conftest import Bench, spec_json


def _states(topology: topology_pb2.Topology | None) -> dict[str, int]:
    return {r.server: r.state for r in topology.replicas} if topology else {}


async def test_apply_orders_reports_and_topology(bench: Bench) -> None:
    controller = await bench.start()
    agent = bench.agent()
    applied = await bench.admin().Apply(admin_pb2.ApplyRequest(spec_json=spec_json(2)))
    assert applied.revision == 1
    assert [(c.action, c.subject) for c in applied.changes if c.action == "start"] == [
        ("start", "replica/tiny-mixed-0"),
        ("start", "replica/tiny-mixed-1"),
    ]
    await until(
        lambda: _states(controller.board.current) == {"tiny-mixed-0.g1": READY, "tiny-mixed-1.g2": READY}, "both ready"
    )
    await until(lambda: agent.orders.gateway.topology == controller.board.current, "the gateway has the topology")
    assert agent.started == ["tiny-mixed-0.g1", "tiny-mixed-1.g2"]
    assert [o.launch.port for o in agent.orders.engines] == [21000, 21001]
