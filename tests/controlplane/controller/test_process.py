"""The controller as a process of its own: killed, restarted, ended."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from grpc import aio

from dataplane.pb import admin_pb2
from tests.controlplane.controller.agent import Agent, until
from tests.controlplane.controller.conftest import Bench, spec_json

ROOT = Path(__file__).parents[3]
Launch = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def launch(bench: Bench) -> Iterator[Launch]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "controlplane.controller", "--state-dir", str(bench.state.root)]
        started.append(subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _took_more(agent: Agent, than: int) -> bool:
    return len(agent.taken) > than


async def _ended(process: subprocess.Popen[str]) -> int:
    await until(lambda: process.poll() is not None, "the process ends")
    assert process.returncode is not None
    return process.returncode


async def _get(bench: Bench) -> admin_pb2.GetResponse:
    return await bench.admin().Get(admin_pb2.GetRequest(), wait_for_ready=True, timeout=20)


async def test_killed_and_restarted_it_touches_nothing(bench: Bench, launch: Launch) -> None:
    process = launch()
    agent = bench.agent()
    admin = bench.admin()
    await admin.Apply(admin_pb2.ApplyRequest(spec_json=spec_json(3)), wait_for_ready=True, timeout=20)
    await until(lambda: len(agent.started) == 3, "three engines")
    number = (await _get(bench)).topology_number
    for _ in range(3):
        process.kill()
        await _ended(process)
        taken = len(agent.taken)
        process = launch()
        await until(partial(_took_more, agent, taken), "orders of the new one")
        deadline = asyncio.get_running_loop().time() + 15
        while (answer := await _get(bench)).pools[0].replicas_ready < 3:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        assert answer.topology_number > number
        number = answer.topology_number
    assert agent.started == ["tiny-mixed-0.g1", "tiny-mixed-1.g2", "tiny-mixed-2.g3"]
    assert agent.stopped == []
    assert all(len(orders.engines) in {0, 3} for orders in agent.taken)


async def test_sigterm_ends_it_cleanly(bench: Bench, launch: Launch) -> None:
    process = launch()
    bench.agent()
    await _get(bench)
    process.send_signal(signal.SIGTERM)
    assert await _ended(process) == 0
    with pytest.raises(aio.AioRpcError):
        await bench.admin().Get(admin_pb2.GetRequest(), timeout=1)


async def test_a_second_one_on_the_same_directory_is_refused(bench: Bench, launch: Launch) -> None:
    launch()
    await _get(bench)
    second = launch()
    assert await _ended(second) == 1
    assert "another process holds the store" in second.communicate()[1]
    await _get(bench)
