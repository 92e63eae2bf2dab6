"""The agent as a process, real engines' processes, a real gRPC controller."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import dataplane
from dataplane.launchers import procfs
from dataplane.launchers.records import Records
from dataplane.names import pin_key
from dataplane.node.engine_path import DISTRIBUTION
from dataplane.pb import node_pb2, topology_pb2
from dataplane.state_dir import StateDir
from tests.dataplane.launchers.waiting import eventually
from tests.dataplane.node.conftest import Agent
from tests.dataplane.node.controller import Controller
from tests.dataplane.node.engine_script import external, order
from tests.ports import lease


def alive(pid: int) -> bool:
    found = procfs.stat(pid)
    return found is not None and not found.dead


async def test_an_ordered_engine_runs_and_is_reported(
    agent: Agent, controller: Controller, state: StateDir, program: str
) -> None:
    one, two = lease(2)
    await controller.order(order(program, "a-0", 3, one), order(program, "a-1", 4, two))
    told = await controller.until(a_0="READY", a_1="READY")
    assert alive(told["a-0"].pid)
    assert told["a-0"].generation == 3
    assert not told["a-0"].exited
    assert told["a-0"].started_unix_ms > 1_600_000_000_000
    record = Records(state).read("a-0")
    assert record is not None
    assert (record.pid, record.role) == (told["a-0"].pid, "replica")
    assert record.labels == {
        "server": "a-0.g3",
        "generation": "3",
        "port": str(one),
        "host": "127.0.0.1",
        "stop_grace_s": "5",
    }
    env = dict(item.split("=", 1) for item in Path(f"/proc/{record.pid}/environ").read_text().split("\0") if item)
    assert env["SLIPSTREAM_PIN"] == pin_key("a-0.g3")
    assert env["PYTHONPATH"] == f"{state.root}/engine-path"
    assert sorted(p.name for p in (state.root / "engine-path").iterdir()) == ["dataplane", DISTRIBUTION]
    assert (state.root / "engine-path" / "dataplane").resolve() == Path(dataplane.__file__).resolve().parent
    last = controller.reports[-1]
    assert (last.node, last.pid) == ("local", agent.pid)
    assert last.cpu_count > 0
    assert last.memory_bytes > 1 << 20
    assert not last.HasField("gateway")


async def test_a_crashed_engine_is_reported_and_left_to_the_controller(
    agent: Agent, controller: Controller, program: str
) -> None:
    (port,) = lease()
    await controller.order(order(program, "a-0", 1, port, "crash"))
    failed = (await controller.until(a_0="FAILED"))["a-0"]
    assert failed.exited
    assert failed.exit_code == 3
    assert failed.pid == 0
    assert failed.detail == "ended with exit code 3"
    assert len(failed.last_log_lines) == 20
    assert failed.last_log_lines[-1] == "boom: no accelerator"
    await controller.order(order(program, "a-0", 1, port, "crash"))  # the same generation: nothing is started
    again = (await controller.until(a_0="FAILED"))["a-0"]
    assert again.started_unix_ms == failed.started_unix_ms
    await controller.order(order(program, "a-0", 2, port))
    ready = (await controller.until(a_0="READY"))["a-0"]
    os.kill(ready.pid, signal.SIGKILL)
    killed = (await controller.until(a_0="FAILED"))["a-0"]
    assert (killed.exit_code, killed.generation) == (-signal.SIGKILL, 2)


async def test_engines_outlive_the_agent_and_are_adopted_untouched(
    agent: Agent, controller: Controller, state: StateDir, program: str
) -> None:
    one, two = lease(2)
    await controller.order(order(program, "a-0", 1, one), order(program, "a-1", 1, two))
    before = await controller.until(a_0="READY", a_1="READY")
    agent.end(signal.SIGKILL)
    assert alive(before["a-0"].pid)
    os.kill(before["a-1"].pid, signal.SIGKILL)  # nobody sees it end
    await eventually(lambda: not alive(before["a-1"].pid))
    controller.reports.clear()
    agent.start()
    after = await controller.until(a_0="READY", a_1="FAILED")
    first = {engine.replica: engine.state for engine in controller.reports[0].engines}
    # Not for one report is what serves told to be anything else.
    assert first["a-0"] == topology_pb2.REPLICA_STATE_READY
    assert after["a-0"].pid == before["a-0"].pid
    assert after["a-0"].started_unix_ms == before["a-0"].started_unix_ms
    assert after["a-1"].exited
    assert after["a-1"].detail == "ended while no agent was there"
    os.kill(after["a-0"].pid, signal.SIGKILL)
    gone = (await controller.until(a_0="FAILED", a_1="FAILED"))["a-0"]
    assert gone.exited
    assert "not known" in gone.detail
    await controller.order()
    await controller.until()
    assert Records(state).all() == []


async def test_sigterm_ends_the_agent_and_nothing_else(agent: Agent, controller: Controller, program: str) -> None:
    (port,) = lease()
    await controller.order(order(program, "a-0", 1, port))
    pid = (await controller.until(a_0="READY"))["a-0"].pid
    assert agent.end(signal.SIGTERM) == 0
    assert alive(pid)
    agent.start()
    assert (await controller.until(a_0="READY"))["a-0"].pid == pid


async def test_without_a_controller_the_last_orders_hold(
    agent: Agent, controller: Controller, state: StateDir, program: str
) -> None:
    one, two = lease(2)
    await controller.order(order(program, "a-0", 1, one))
    pid = (await controller.until(a_0="READY"))["a-0"].pid
    agent.end(signal.SIGKILL)
    await controller.stop()
    # What the controller would have ordered next is what the disk holds.
    kept = node_pb2.NodeOrders(number=9, engines=[order(program, "a-0", 1, one), order(program, "a-1", 2, two)])
    (state.node / "orders.pb").write_bytes(kept.SerializeToString())
    agent.start()
    await eventually(lambda: Records(state).read("a-1"))
    assert alive(pid)
    controller.orders = kept
    await controller.start()
    assert (await controller.until(a_0="READY", a_1="READY"))["a-0"].pid == pid


async def test_a_new_generation_takes_the_place_of_the_old_one(
    agent: Agent, controller: Controller, program: str
) -> None:
    (port,) = lease()
    await controller.order(order(program, "a-0", 1, port, "worker"))
    old = (await controller.until(a_0="READY"))["a-0"]
    await controller.order(order(program, "a-0", 2, port))  # the same port: the old one must be gone
    new = (await controller.until(a_0="READY"))["a-0"]
    assert (old.generation, new.generation) == (1, 2)
    assert not alive(old.pid)
    log = Path(agent.state.logs / "a-0.log.1").read_text().split()
    assert not alive(int(log[log.index("worker") + 1]))


async def test_what_is_not_ordered_is_stopped_within_its_grace(
    agent: Agent, controller: Controller, state: StateDir, program: str
) -> None:
    one, two = lease(2)
    await controller.order(order(program, "a-0", 1, one), order(program, "a-1", 1, two, "deaf", grace_s=0.2))
    before = await controller.until(a_0="READY", a_1="READY")
    await controller.order(order(program, "a-1", 2, two, grace_s=0.2))
    after = await controller.until(a_1="READY")
    assert not alive(before["a-0"].pid)
    assert not alive(before["a-1"].pid)
    assert after["a-1"].generation == 2
    assert [record.name for record in Records(state).all()] == ["a-1"]


async def test_a_hung_engine_is_out_but_not_touched(agent: Agent, controller: Controller, program: str) -> None:
    (port,) = lease()
    await controller.order(order(program, "a-0", 1, port))
    pid = (await controller.until(a_0="READY"))["a-0"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        hung = (await controller.until(a_0="FAILED"))["a-0"]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not hung.exited
    assert hung.pid == pid
    assert "no answer" in hung.detail
    assert (await controller.until(a_0="READY"))["a-0"].pid == pid


async def test_the_agent_comes_back_to_a_restarted_controller(
    agent: Agent, controller: Controller, program: str
) -> None:
    (port,) = lease()
    await controller.order(order(program, "a-0", 1, port))
    pid = (await controller.until(a_0="READY"))["a-0"].pid
    await controller.stop()
    controller.reports.clear()
    await controller.start()
    assert (await controller.until(a_0="READY"))["a-0"].pid == pid
    assert controller.connections == 2


async def test_orders_that_make_no_sense_are_refused_as_a_whole(
    agent: Agent, controller: Controller, program: str
) -> None:
    (port,) = lease()
    good = await controller.order(order(program, "a-0", 1, port))
    pid = (await controller.until(a_0="READY"))["a-0"].pid
    await controller.order(order(program, "a-1", 1, port), order(program, "a-1", 2, port))
    await eventually(lambda: "orders 2 are refused: a replica is ordered twice" in agent.log)
    await controller.order(order(program, "../x", 1, port))
    await eventually(lambda: "orders 3 are refused: server name '../x.g1'" in agent.log)
    last = await controller.heard(lambda report: report.orders_number == good)
    assert [engine.pid for engine in last.engines] == [pid]


async def test_a_launch_that_cannot_be_written_as_a_command_fails_with_the_reason(
    agent: Agent, controller: Controller, program: str
) -> None:
    await controller.order(order(program, "a-0", 1, 0))
    failed = (await controller.until(a_0="FAILED"))["a-0"]
    assert not failed.exited
    assert "port" in failed.detail


async def test_an_engine_that_cannot_be_written_down_waits_for_room(
    agent: Agent, controller: Controller, state: StateDir, program: str
) -> None:
    (port,) = lease()
    await controller.order()
    await controller.until()
    away = state.root / "away"
    state.processes.rename(away)  # no record can be written, as on a full disk
    await controller.order(order(program, "a-0", 1, port))
    pending = (await controller.until(a_0="PENDING"))["a-0"]
    await controller.heard(lambda report: "cannot be started" in report.engines[0].detail)
    assert pending.pid == 0
    away.rename(state.processes)
    assert (await controller.until(a_0="READY"))["a-0"].pid


async def test_external_endpoints_are_only_probed(agent: Agent, controller: Controller, program: str) -> None:
    one, two = lease(2)
    await controller.order(order(program, "a-0", 1, one), external("x-0", 1, f"127.0.0.1:{one}", f"127.0.0.1:{two}"))
    waiting = await controller.until(a_0="READY", x_0="STARTING")
    assert waiting["x-0"].pid == 0
    await controller.order(
        order(program, "a-0", 1, one),
        order(program, "a-1", 1, two),
        external("x-0", 1, f"127.0.0.1:{one}", f"127.0.0.1:{two}"),
    )
    ready = await controller.until(a_0="READY", a_1="READY", x_0="READY")
    os.kill(ready["a-1"].pid, signal.SIGKILL)
    lost = (await controller.until(a_0="READY", a_1="FAILED", x_0="FAILED"))["x-0"]
    assert not lost.exited


async def test_a_second_agent_of_one_state_directory_ends_at_once(agent: Agent, controller: Controller) -> None:
    await controller.order()
    await controller.until()
    second = Agent(agent.state)
    second.start()
    assert await asyncio.to_thread(second.wait) == 1
    assert "another node agent serves" in agent.log


async def test_reports_come_without_any_change(agent: Agent, controller: Controller) -> None:
    await controller.order()
    await controller.until()
    before = len(controller.reports)
    await eventually(lambda: len(controller.reports) > before)
