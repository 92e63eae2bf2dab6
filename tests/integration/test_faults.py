"""What dies, and what its death costs: kill -9 of each part under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx2
import pytest

from controlplane.cli.client import routing as client_of_router
from dataplane.pb import routing_pb2
from dataplane.state_dir import StateDir
from tests.integration.cluster import Cluster, is_alive, running, until
from tests.integration.conftest import TWO_MODELS
from tests.integration.load import Load, chat

MODELS = ("alpha", "alpha-sql", "beta")
POOL_OF = {"alpha": "alpha", "alpha-sql": "alpha", "beta": "beta"}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running(TWO_MODELS) as cluster:
        yield cluster


async def _during_load(cluster: Cluster, load: Load, work: object, after_s: float = 2.0) -> None:
    running_load = asyncio.create_task(load.run())
    await _until_streams(load, 20)
    await asyncio.to_thread(work)  # type: ignore[arg-type]
    await _until_streams(load, len(load.streams) + 40)
    await asyncio.sleep(after_s)
    load.stop()
    await running_load


async def _until_streams(load: Load, count: int) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    while len(load.streams) < count:
        assert asyncio.get_running_loop().time() < deadline, f"only {len(load.streams)} of {count} streams ended"
        await asyncio.sleep(0.05)


def _assert_own_pools(load: Load) -> None:
    for stream in load.streams:
        if stream.replica:
            assert stream.replica.startswith(POOL_OF[stream.model]), stream


async def test_killing_the_router_fails_no_request_and_mixes_no_models(cluster: Cluster) -> None:
    load = Load(cluster.url, MODELS)

    def kill_router() -> None:
        old = cluster.kill("router")
        cluster.wait_new_pid("router", old, seconds=5)

    await _during_load(cluster, load, kill_router)
    assert load.verdicts() == {"clean": len(load.streams)}
    _assert_own_pools(load)
    for model in MODELS:
        assert sum(load.replicas(model).values()) > 0
    last = load.streams[-1].request_id
    until(lambda: cluster.cli("why", last, check=False).returncode, lambda code: code == 0, "the new router decides")


async def test_killing_the_controller_changes_nothing_for_traffic(cluster: Cluster) -> None:
    replicas = {name: r["pid"] for name, r in cluster.records().items() if r["role"] == "replica"}
    load = Load(cluster.url, MODELS)

    def kill_controller() -> None:
        old = cluster.kill("controller")
        cluster.wait_new_pid("controller", old)

    await _during_load(cluster, load, kill_controller)
    assert load.verdicts() == {"clean": len(load.streams)}
    until(lambda: len(cluster.ready_replicas()), lambda n: n == 4, "the new controller knows every replica")
    assert {name: r["pid"] for name, r in cluster.records().items() if r["role"] == "replica"} == replicas


async def test_killing_a_replica_cuts_only_its_own_streams_and_it_comes_back(cluster: Cluster) -> None:
    load = Load(cluster.url, ("alpha",), max_tokens=60)
    victim = next(n for n, r in sorted(cluster.records().items()) if r["role"] == "replica" and n.startswith("alpha"))
    killed_at = 0.0

    def kill_replica() -> None:
        nonlocal killed_at
        old = cluster.kill(victim)
        killed_at = asyncio.run_coroutine_threadsafe(_now(), loop).result()
        cluster.wait_new_pid(victim, old)

    loop = asyncio.get_running_loop()
    await _during_load(cluster, load, kill_replica)
    bad = [s for s in load.streams if s.verdict != "clean"]
    assert load.verdicts()["wrong"] == 0
    assert all(s.replica.startswith(f"{victim}.g1") for s in bad if s.verdict == "truncated"), bad
    assert not [s for s in bad if s.began_s > killed_at + 1.0], bad
    assert not [s for s in bad if s.verdict == "failed"], bad
    until(lambda: len(cluster.ready_replicas()), lambda n: n == 4, "the replica is back in rotation")
    views = {v["replica"]["name"]: v["replica"] for v in cluster.json("get", "replicas")}
    assert views[victim]["generation"] > 1


async def _now() -> float:
    return asyncio.get_running_loop().time()


async def test_killing_the_node_agent_leaves_engines_and_haproxy_alone(cluster: Cluster) -> None:
    kept = {n: r["pid"] for n, r in cluster.records().items() if r["role"] in ("replica", "haproxy")}
    load = Load(cluster.url, MODELS)

    def kill_agent() -> None:
        old = cluster.kill("node")
        cluster.wait_new_pid("node", old)

    await _during_load(cluster, load, kill_agent)
    assert load.verdicts() == {"clean": len(load.streams)}
    until(lambda: len(cluster.ready_replicas()), lambda n: n == 4, "the new agent adopted every replica")
    assert {n: r["pid"] for n, r in cluster.records().items() if r["role"] in ("replica", "haproxy")} == kept


async def test_a_hung_router_fails_no_request(cluster: Cluster) -> None:
    load = Load(cluster.url, MODELS)

    def stop_router() -> None:
        seen = len(load.streams)
        pid = cluster.kill("router", signal.SIGSTOP)
        until(lambda: len(load.streams), lambda n: n > seen + 40, "streams go on beside a hung router")
        os.kill(pid, signal.SIGCONT)

    await _during_load(cluster, load, stop_router)
    assert load.verdicts() == {"clean": len(load.streams)}
    _assert_own_pools(load)


async def test_clients_that_leave_free_their_replicas(cluster: Cluster) -> None:
    async def leave(client: httpx2.AsyncClient, number: int) -> None:
        body = {
            "model": MODELS[number % 3],
            "messages": [{"role": "user", "content": f"long {number}"}],
            "stream": True,
            "max_tokens": 2000,
            "ignore_eos": True,
        }
        async with client.stream("POST", f"{cluster.url}/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            async for _ in response.aiter_lines():
                return

    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        await asyncio.gather(*(leave(client, number) for number in range(24)))
        engines = [v["replica"] for v in cluster.json("get", "replicas")]
        for engine in engines:
            url = f"http://{engine['host']}:{engine['port']}/metrics"
            await asyncio.to_thread(until, lambda url=url: _running(url), lambda n: n == 0, "the engine freed them")

    def in_flight() -> int:
        with client_of_router(StateDir(cluster.state)) as stub:
            return sum(r.in_flight for r in stub.Status(routing_pb2.RouterStatusRequest()).replicas)

    until(in_flight, lambda n: n == 0, "the router counts nothing in flight")


def _running(url: str) -> float:
    lines = httpx2.get(url, trust_env=False).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running{"))


async def test_prompts_are_written_nowhere(cluster: Cluster) -> None:
    canary = "canary-7f3a9e21"
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        for model in (*MODELS, "no-such-model"):
            await chat(client, cluster.url, model, f"{canary} {model}", 4)
        await client.post(f"{cluster.url}/v1/chat/completions", content=f'{{"model": "alpha", "{canary}'.encode())
        metrics = (await client.get(f"http://127.0.0.1:{cluster.page_port}/metrics")).text
    assert canary not in metrics
    for path in cluster.state.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


async def test_killing_haproxy_brings_it_back(cluster: Cluster) -> None:
    old = cluster.kill("haproxy")
    cluster.wait_new_pid("haproxy", old, seconds=5)
    load = Load(cluster.url, MODELS, concurrency=2)
    task = asyncio.create_task(load.run())
    deadline = asyncio.get_running_loop().time() + 10
    while not any(s.verdict == "clean" for s in load.streams):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.1)
    load.stop()
    await task


def test_ctrl_c_ends_everything_that_was_started_and_nothing_else() -> None:
    with running(TWO_MODELS) as cluster:
        pids = {n: r["pid"] for n, r in cluster.records().items()}
        assert {r["role"] for r in cluster.records().values()} == {"haproxy", "router", "controller", "node", "replica"}
        assert cluster.stop() == 0
        for name, pid in pids.items():
            assert not is_alive(pid), name
        assert cluster.records() == {}
