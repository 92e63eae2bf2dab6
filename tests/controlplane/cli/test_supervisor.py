"""The supervisor with stand-ins for the three services: real processes, real deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from controlplane.cli.supervisor import Supervisor, process_specs
from dataplane.launchers.base import ProcessSpec
from dataplane.launchers.local import LocalLauncher
from dataplane.state_dir import StateDir

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
BRINGUP_DONE = [sys.executable, "-c", "pass"]


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    state = StateDir(tmp_path / "s")
    state.create()
    specs = tuple(ProcessSpec(name=name, role=name, argv=SLEEPER) for name in ("router", "controller", "node"))
    return Supervisor(state, LocalLauncher(state), specs)


async def _until(condition: object, seconds: float = 10.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def test_a_dead_service_is_started_again_and_all_end_at_the_signal(supervisor: Supervisor) -> None:
    task = asyncio.create_task(supervisor.run(BRINGUP_DONE))
    await _until(lambda: len(supervisor.running) == 3)
    old = supervisor.running["router"].pid
    os.kill(old, signal.SIGKILL)
    await _until(lambda: "router" in supervisor.running and supervisor.running["router"].pid != old)
    pids = [p.pid for p in supervisor.running.values()]
    supervisor.on_signal()
    assert await task == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list(supervisor.state.processes.iterdir()) == []


async def test_a_failed_bringup_ends_everything(supervisor: Supervisor) -> None:
    assert await supervisor.run([sys.executable, "-c", "raise SystemExit(1)"]) == 1
    assert list(supervisor.state.processes.iterdir()) == []


async def test_what_an_earlier_supervisor_left_is_adopted(supervisor: Supervisor) -> None:
    left = await LocalLauncher(supervisor.state).start(supervisor.specs[0])
    task = asyncio.create_task(supervisor.run(BRINGUP_DONE))
    await _until(lambda: len(supervisor.running) == 3)
    assert supervisor.running["router"].pid == left.pid
    supervisor.on_signal()
    assert await task == 0


def test_nothing_secret_reaches_a_command_line(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    specs = {spec.name: spec.argv for spec in process_specs(state, "local", "127.0.0.1:8001")}
    assert specs["controller"][-2:] == ("--page", "127.0.0.1:8001")
    assert specs["node"][-4:] == ("--name", "local", "--controller", f"unix:{state.controller_socket}")
    assert all(str(tmp_path) in argv for argv in specs.values())
