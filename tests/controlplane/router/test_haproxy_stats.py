import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from controlplane.router import haproxy_stats
from controlplane.router import reconciliation as reconciliation_module
from controlplane.router.counters import Counters
from controlplane.router.haproxy_stats import (
    MAX_OLD_WORKERS,
    StatsUnavailable,
    current_streams,
    old_workers,
    streams_by_server,
)
from controlplane.router.reconciliation import Reconciliation
from dataplane.state_dir import StateDir
from tests.controlplane.router.gateway import haproxy, replicas, state_dir

HEAD = "# pxname,svname,qcur,qmax,scur,smax,\n"
MASTER = """#<PID>          <type>          <reloads>       <uptime>        <version>
20              master          2               0d00h01m00s     2.8.25
# workers
23              worker          0               0d00h00m10s     2.8.25
# old workers
22              worker          1               0d00h00m20s     2.8.25
21              worker          2               0d00h00m30s     2.8.25
# programs

"""


def test_streams_are_those_that_run_and_those_that_wait() -> None:
    assert streams_by_server(HEAD + "p,a.g1,1,1,2,9,\np,b.g1,,,0,0,\np,c.g1,0,0\n\n") == {"a.g1": 3, "b.g1": 0}


@pytest.mark.parametrize("answer", ["", "Unknown command", "# pxname,svname\n", "p,a,1,1,2,9,\n"])
def test_other_answers(answer: str) -> None:
    with pytest.raises(StatsUnavailable):
        streams_by_server(answer)


def test_old_workers_of_the_master() -> None:
    assert list(old_workers(MASTER)) == [22, 21]
    assert list(old_workers("nothing")) == []
    many = "# old workers\n" + "".join(f"{pid} worker\n" for pid in range(100, 120))
    assert len(list(old_workers(many))) == MAX_OLD_WORKERS


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return state_dir(tmp_path)


async def test_a_real_haproxy(state: StateDir) -> None:
    async with replicas(2) as servers, haproxy(state, servers):
        streams = await current_streams(state.haproxy_socket, state.haproxy_master_socket)
        assert {name: streams[name] for name, _ in servers} == {"tiny-mixed-0.g1": 0, "tiny-mixed-1.g1": 0}


async def test_old_workers_are_added(state: StateDir) -> None:
    answers = {
        "show stat -1 4 -1": HEAD + "p,a.g1,0,0,1,1,\n",
        "show proc": MASTER,
        "@!22 show stat -1 4 -1": HEAD + "p,a.g1,0,0,2,1,\np,old.g1,0,0,5,5,\n",
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = (await reader.readline()).decode().strip()
        writer.write(answers.get(command, "").encode())
        await writer.drain()
        writer.close()

    current = await asyncio.start_unix_server(serve, state.haproxy_socket)
    master = await asyncio.start_unix_server(serve, state.haproxy_master_socket)
    streams = await current_streams(state.haproxy_socket, state.haproxy_master_socket)
    assert streams == {"a.g1": 3, "old.g1": 5}
    current.close()
    master.close()


async def test_no_haproxy_and_one_that_hangs(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StatsUnavailable):
        await current_streams(state.haproxy_socket, state.haproxy_master_socket)
    monkeypatch.setattr(haproxy_stats, "ANSWER_TIMEOUT_S", 0.05)
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda _, writer: held.append(writer), state.haproxy_socket)
    with pytest.raises(StatsUnavailable, match="TimeoutError"):
        await current_streams(state.haproxy_socket, state.haproxy_master_socket)
    for writer in held:
        writer.close()
    server.close()


async def test_an_answer_that_never_ends(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy_stats, "MAX_ANSWER_BYTES", 1000)

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 100_000)
        writer.close()

    server = await asyncio.start_unix_server(flood, state.haproxy_socket)
    with pytest.raises(StatsUnavailable, match="larger than"):
        await current_streams(state.haproxy_socket, state.haproxy_master_socket)
    server.close()


async def test_reconciliation(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    seen: list[Mapping[str, int]] = []
    reconciliation = Reconciliation(state, lambda streams, _: seen.append(streams), lambda: 1.0, counters)
    assert await reconciliation.once() == 0
    assert counters == Counters(), "without HAProxy there is nothing to tell"
    async with replicas(1) as servers:
        async with haproxy(state, servers):
            assert await reconciliation.once() >= 1
            assert seen[0]["tiny-mixed-0.g1"] == 0
        assert await reconciliation.once() == 0
    broken = Reconciliation(state, lambda *_: 1 // 0, lambda: 1.0, counters)
    monkeypatch.setattr(reconciliation_module, "current_streams", _two_streams)
    assert await broken.once() == 2
    assert (counters.reconciliations, counters.reconciliation_failures, counters.errors) == (1, 1, 1)


async def _two_streams(*_paths: Path) -> dict[str, int]:
    return {"a.g1": 1, "b.g1": 1}
