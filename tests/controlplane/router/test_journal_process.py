"""A real router behind a real HAProxy writes a journal, and its decisions come out again."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from controlplane.router import topology_file
from controlplane.router.journal_files import journals
from controlplane.router.journal_run import FOLDER_NAME
from controlplane.simulation.replay import replay
from controlplane.simulation.replay_read import find, read
from dataplane.pb.topology_pb2 import Journal, Shadow, Topology
from dataplane.state_dir import StateDir
from tests.controlplane.router import world
from tests.controlplane.router.controller import serving
from tests.controlplane.router.gateway import haproxy, replicas, request, state_dir
from tests.controlplane.router.test_process import api, router, status, until_all_ended, until_number, until_used

SECRET = b"the words of a prompt"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return state_dir(tmp_path)


def watched(number: int, servers: list[tuple[str, int]], shadow: str = "round_robin") -> Topology:
    made = world.topology(number, servers=servers, policy="cost")
    made.models[0].routing.shadow.CopyFrom(Shadow(policy=shadow, share=1.0))
    made.journal.CopyFrom(Journal(share=1.0))
    return made


async def test_a_router_s_decisions_come_out_again(state: StateDir) -> None:
    async with replicas(3) as servers:
        topology_file.write(world.topology_path(state), watched(1, servers))
        with router(state) as process:
            async with haproxy(state, servers) as port, api(state) as stub:
                await until_used(port)
                body = b'{"prompt": "' + SECRET * 400 + b'", "model": "tiny", "user": "someone"}'
                for _ in range(12):
                    code, headers = await request(port, b"", body)
                    assert (code, headers["x-got"]) == (200, headers["x-want"])
                async with serving(state, watched(2, servers[:2])):
                    await until_number(stub, 2)
                for _ in range(12):
                    assert (await request(port, world.record()))[0] == 200
                await until_all_ended(stub, 24)
                told = await status(stub)
                (shadow,) = told.shadows
                assert (shadow.model, shadow.policy, shadow.failures, shadow.off) == ("tiny", "round_robin", 0, False)
                assert shadow.decisions >= 24
                assert told.journal.lines >= 50
                assert not told.journal.dropped + told.journal.lost
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    folder = state.router / FOLDER_NAME
    (path,) = journals(folder)
    assert path.name.startswith(told.journal.run)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in path.read_bytes()
    recorded = read(find(folder))
    assert recorded.exact
    assert (recorded.topologies, recorded.cluster) == (2, "test")
    result = replay(recorded)
    assert result.identical, result.first
    assert result.decisions >= 24


async def test_a_shadow_that_is_not_known_does_not_stop_a_topology(state: StateDir) -> None:
    async with replicas(1) as servers:
        topology_file.write(world.topology_path(state), watched(1, servers, "astrology"))
        with router(state):
            async with api(state) as stub:
                assert not (await until_number(stub, 1)).shadows
