"""What an operator does: look, scale, drain, restart, change the spec, hand out keys; under load, dropping nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.integration.cluster import SLIPSTREAM, Cluster, is_alive, running, until
from tests.integration.conftest import ONE_MODEL
from tests.integration.load import Load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running(ONE_MODEL) as cluster:
        yield cluster


async def _under_load(cluster: Cluster, work: Callable[[], None]) -> Load:
    load = Load(cluster.url, ("demo", "demo-sql"), concurrency=6, max_tokens=20)
    task = asyncio.create_task(load.run())
    await asyncio.to_thread(work)
    seen = len(load.streams)
    deadline = asyncio.get_running_loop().time() + 20
    while len(load.streams) < seen + 20 and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
    load.stop()
    await task
    return load


async def test_scaling_draining_and_restarting_drop_no_stream(cluster: Cluster) -> None:
    def operate() -> None:
        cluster.cli("scale", "demo", "4")
        until(lambda: len(cluster.ready_replicas()), lambda n: n == 4, "scaled up")
        cluster.cli("drain", "demo-0")
        until(lambda: _state(cluster, "demo-0"), lambda s: s == "REPLICA_STATE_DRAINING", "draining")
        cluster.cli("undrain", "demo-0")
        until(lambda: len(cluster.ready_replicas()), lambda n: n == 4, "undrained")
        old = cluster.pid("demo-1")
        cluster.cli("restart", "demo-1", "--yes")
        cluster.wait_new_pid("demo-1", old, 30)
        until(lambda: len(cluster.ready_replicas()), lambda n: n == 4, "restarted")
        cluster.cli("scale", "demo", "2")
        until(lambda: sorted(cluster.records()), lambda r: "demo-3" not in r and "demo-2" not in r, "scaled down", 30)

    load = await _under_load(cluster, operate)
    assert load.verdicts() == {"clean": len(load.streams)}


def _state(cluster: Cluster, name: str) -> str:
    views = cluster.json("get", "replicas", name)
    return str(views[0]["replica"]["state"])


async def test_plan_shows_and_apply_does_a_new_model_without_dropping_a_stream(cluster: Cluster) -> None:
    changed = cluster.spec.with_name("changed.yaml")
    extra = "  - name: second\n    pools:\n      - {name: second, replicas: 1, engine: {kind: simulated}}\n"
    changed.write_text(cluster.spec.read_text() + extra)

    def operate() -> None:
        planned = cluster.cli("plan", str(changed)).stdout
        assert "second-0" in planned
        assert "+" in planned
        assert cluster.ready_replicas() == ["demo-0", "demo-1", "demo-2"]
        refused = cluster.cli("apply", str(changed), check=False)
        assert refused.returncode == 2  # it changes the cluster, and nobody can be asked
        cluster.cli("apply", str(changed), "--yes", "--wait", "30")
        with httpx2.Client(base_url=cluster.url, trust_env=False) as http:
            models = [m["id"] for m in http.get("/v1/models").json()["data"]]
            assert "second" in models
            body = {"model": "second", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            assert http.post("/v1/chat/completions", json=body).headers["x-slipstream-replica"].startswith("second-0")
        cluster.cli("apply", str(cluster.spec), "--yes", "--wait", "30")

    load = await _under_load(cluster, operate)
    assert load.verdicts() == {"clean": len(load.streams)}


def test_a_wrong_spec_names_file_line_and_key_and_changes_nothing(cluster: Cluster) -> None:
    wrong = cluster.spec.with_name("wrong.yaml")
    lines = cluster.spec.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "replicas: 3" in line)
    wrong.write_text(cluster.spec.read_text().replace("replicas: 3", "replicass: 3"))
    before = cluster.records()
    done = cluster.cli("apply", str(wrong), "--yes", check=False)
    assert done.returncode == 1
    assert f"wrong.yaml:{number}" in done.stderr
    assert "replicass" in done.stderr
    assert "did you mean" in done.stderr
    assert cluster.records() == before


def test_listings_logs_status_and_page(cluster: Cluster) -> None:
    for kind in ("models", "pools", "replicas", "nodes", "gateways"):
        assert cluster.json("get", kind), kind
        assert cluster.cli("get", kind).stdout
    described = cluster.cli("describe", "replicas", "demo-0").stdout
    assert "demo-0" in described
    statuses = cluster.json("status")
    assert {s["role"] for s in statuses} == {"haproxy", "router", "controller", "node", "replica"}
    assert all(s["ready"] and is_alive(s["pid"]) for s in statuses)
    assert cluster.cli("logs", "demo-0").stdout
    missing = cluster.cli("logs", "../up", check=False)
    assert missing.returncode == 1
    page = urllib.request.urlopen(f"http://127.0.0.1:{cluster.page_port}/", timeout=5).read().decode()
    assert "<html" in page
    assert urllib.request.urlopen(f"http://127.0.0.1:{cluster.page_port}/healthz", timeout=5).status == 200
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{cluster.page_port}/metrics", timeout=5).read().decode()
    assert "slipstream_" in metrics


def test_keys_are_created_enforced_listed_and_revoked() -> None:
    with running(ONE_MODEL + "api_keys: {required: true}\n") as cluster:
        chat = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        with httpx2.Client(base_url=cluster.url, trust_env=False) as http:

            def code(secret: str) -> int:
                headers = {"authorization": f"Bearer {secret}"} if secret else {}
                return http.post("/v1/chat/completions", json=chat, headers=headers).status_code

            assert code("") == 401
            assert code("wrong") == 401
            secret = cluster.json("key", "create", "alice")["secret"]
            until(lambda: code(secret), lambda status: status == 200, "the new key works")
            assert [k["name"] for k in cluster.json("key", "list")] == ["alice"]
            cluster.cli("key", "revoke", "alice", "--yes")
            until(lambda: code(secret), lambda status: status == 401, "the revoked key is refused")
        for path in [*cluster.state.rglob("*")]:
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def test_a_second_up_in_the_same_place_is_refused(cluster: Cluster) -> None:
    done = cluster.cli("up", str(cluster.spec), check=False)
    assert done.returncode == 1
    assert "another `slipstream up`" in done.stderr


def test_a_taken_port_is_told_before_anything_starts(cluster: Cluster, tmp_path: Path) -> None:
    state = tmp_path / "s"
    done = subprocess.run(
        [*SLIPSTREAM, "up", str(cluster.spec), "--state-dir", str(state)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"127.0.0.1:{cluster.port} is in use" in done.stderr
    assert not list((state / "processes").glob("*"))


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.yaml")))
def test_every_example_renders_without_starting_anything(example: str, tmp_path: Path) -> None:
    command = [*SLIPSTREAM, "render", str(ROOT / "examples" / example), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("haproxy.cfg", "spoe.cfg", "features.lua"):
        assert (tmp_path / "out" / "gateway" / name).stat().st_size > 0
    for engine in (tmp_path / "out" / "engines").glob("*.json"):
        assert json.loads(engine.read_text())["argv"]


def test_a_python_builder_renders_like_a_file(tmp_path: Path) -> None:
    command = [*SLIPSTREAM, "render", "examples.python_cluster:cluster", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gateway" / "haproxy.cfg").exists()


def test_the_schema_is_json_schema() -> None:
    done = subprocess.run([*SLIPSTREAM, "schema"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["properties"]["models"]
