"""With the engine that the quickstart runs: started through its real command line, behind the real HAProxy."""

from __future__ import annotations

import os
import signal

from dataplane.names import pin_key, server_name
from dataplane.pb import engine_pb2, node_pb2, topology_pb2
from dataplane.state_dir import StateDir
from tests.dataplane.node.conftest import Agent
from tests.dataplane.node.controller import Controller
from tests.dataplane.node.test_gateway_keeper import gateway, replica, until_servers
from tests.ports import lease


def simulated(name: str, generation: int, port: int) -> node_pb2.EngineOrder:
    launch = engine_pb2.EngineLaunch(
        replica=name,
        generation=generation,
        kind=topology_pb2.ENGINE_KIND_SIMULATED,
        served_model="tiny",
        host="127.0.0.1",
        port=port,
        pin_key=pin_key(server_name(name, generation)),
        simulated=engine_pb2.SimulatedEngine(kv_capacity_tokens=4096, kv_block_tokens=16, step_base_ms=1),
    )
    return node_pb2.EngineOrder(launch=launch, stop_grace_s=5)


async def test_simulated_engines_serve_and_fail(agent: Agent, controller: Controller, state: StateDir) -> None:
    front, one, two = lease(3)
    engines = [simulated("a-0", 1, one), simulated("a-1", 2, two)]
    order = gateway(front, 1, [replica("a-0", 1, one), replica("a-1", 2, two)])
    await controller.order(*engines, gateway=order)
    ready = await controller.until(a_0="READY", a_1="READY")
    assert (ready["a-0"].kv_capacity_tokens, ready["a-0"].kv_block_tokens) == (4096, 16)
    await until_servers(state, a_0_g1="UP", a_1_g2="UP")
    os.kill(ready["a-1"].pid, signal.SIGKILL)
    failed = await controller.until(a_0="READY", a_1="FAILED")
    assert failed["a-1"].exit_code == -signal.SIGKILL
    await until_servers(state, a_0_g1="UP", a_1_g2="MAINT")
    engines[1] = simulated("a-1", 3, two)
    order = gateway(front, 2, [replica("a-0", 1, one), replica("a-1", 3, two)])
    await controller.order(*engines, gateway=order)
    await controller.until(a_0="READY", a_1="READY")
    await until_servers(state, a_0_g1="UP", a_1_g3="UP")
