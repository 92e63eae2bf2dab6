"""A precise model, through HAProxy: requests go where the engines themselves say that the prompt is cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import httpx2
import pytest

from dataplane.pb import routing_pb2 as pb
from dataplane.pb.routing_pb2_grpc import RoutingServiceStub
from tests.integration.cluster import Cluster, running, until

SPEC = """
cluster: precise
gateway: {listen: ["127.0.0.1:GATEWAY_PORT"], decision_timeout_ms: 500}
admin: {page: "127.0.0.1:PAGE_PORT"}
nodes: [{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}]
models:
  - name: tiny
    routing: {precise: true}
    pools:
      - name: tiny
        replicas: 3
        engine: {kind: simulated, startup_s: 0, step_base_ms: 0.5, max_model_tokens: 65536}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(SPEC) as cluster:
        yield cluster


def status(cluster: Cluster) -> pb.RouterStatusResponse:
    with grpc.insecure_channel(f"unix:{cluster.state}/run/router.sock") as channel:
        found: pb.RouterStatusResponse = RoutingServiceStub(channel).Status(pb.RouterStatusRequest())
    return found


def chat(cluster: Cluster, *texts: str, path: str = "/v1/chat/completions") -> httpx2.Response:
    messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    body = {"model": "tiny", "messages": messages, "max_tokens": 1}
    answer = httpx2.post(f"{cluster.url}{path}", json=body, timeout=30, trust_env=False)
    answer.raise_for_status()
    return answer


def replica_of(answer: httpx2.Response) -> str:
    return answer.headers["x-slipstream-replica"].partition(".")[0]


def engine(cluster: Cluster, replica: str) -> str:
    views = {view["replica"]["name"]: view["replica"] for view in cluster.json("get", "replicas")}
    return f"http://{views[replica]['host']}:{views[replica]['port']}"


def hits(cluster: Cluster, replica: str) -> float:
    text = httpx2.get(f"{engine(cluster, replica)}/metrics", timeout=20, trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith("vllm:prefix_cache_hits_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def settled(cluster: Cluster, blocks: int) -> None:
    """Wait until the router knows of at least so many blocks."""
    until(
        lambda: status(cluster).precise,
        lambda found: bool(found.models) and found.models[0].blocks >= blocks and not found.models[0].incomplete,
        f"{blocks} blocks",
    )


@pytest.mark.parametrize("size", [2_000, 60_000, 150_000])  # raw, raw and long, by its features and then whole
def test_the_second_turn_goes_where_the_first_is_cached(cluster: Cluster, size: int) -> None:
    until(lambda: status(cluster).precise.models, lambda models: bool(models) and models[0].tokenizer, "a tokenizer")
    before = status(cluster).precise
    known = before.models[0].blocks
    first = f"conversation of {size} bytes " * (size // 25)
    chosen = replica_of(chat(cluster, first))
    tokens = len(first) // 4
    settled(cluster, known + tokens // 16 - 1)
    cached = hits(cluster, chosen)
    for turn in range(3):
        assert replica_of(chat(cluster, first, "answer", f"turn {turn}")) == chosen
    assert hits(cluster, chosen) - cached >= 3 * (tokens - 32)
    after = status(cluster).precise
    assert after.matched - before.matched == 4, after


def test_it_follows_what_only_the_engine_knows(cluster: Cluster) -> None:
    """A prompt that never passed the gateway is found; one that the engine dropped is not."""
    text = "known to one engine alone " * 400
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    known = status(cluster).precise.models[0].blocks
    httpx2.post(f"{engine(cluster, 'tiny-2')}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    settled(cluster, known + len(text) // 64 - 1)
    for turn in range(3):
        assert replica_of(chat(cluster, text, "answer", f"turn {turn}")) == "tiny-2"
    for replica in ("tiny-0", "tiny-1", "tiny-2"):
        until(
            lambda replica=replica: httpx2.post(  # type: ignore[misc]
                f"{engine(cluster, replica)}/reset_prefix_cache", timeout=20, trust_env=False
            ).json()["success"],
            bool,
            "an empty cache",
        )
    until(lambda: status(cluster).precise.models[0].blocks, lambda blocks: blocks == 0, "an empty index")


def test_a_restarted_router_learns_from_the_engines(cluster: Cluster) -> None:
    text = "remembered by the engine, not by the router " * 300
    chosen = replica_of(chat(cluster, text))
    settled(cluster, len(text) // 64 - 1)
    cluster.wait_new_pid("router", cluster.kill("router"))
    until(lambda: status_or_none(cluster), lambda found: found is not None and bool(found.precise.models), "a router")
    settled(cluster, len(text) // 64 - 1)
    until(lambda: status(cluster).precise.models, lambda models: models[0].tokenizer, "a tokenizer")
    for turn in range(3):
        assert replica_of(chat(cluster, text, "answer", f"turn {turn}")) == chosen


def status_or_none(cluster: Cluster) -> pb.RouterStatusResponse | None:
    try:
        return status(cluster)
    except grpc.RpcError:
        return None


def test_a_new_generation_begins_with_nothing(cluster: Cluster) -> None:
    text = "lost with its engine " * 600
    chosen = replica_of(chat(cluster, text))
    settled(cluster, len(text) // 64 - 1)
    old = cluster.kill(chosen)
    cluster.wait_new_pid(chosen, old)
    until(cluster.ready_replicas, lambda names: len(names) == 3, "three replicas")
    until(lambda: status(cluster).precise.models[0].replicas, lambda count: count == 3, "three that are followed")
    answer = chat(cluster, text)
    assert answer.status_code == 200


def test_prometheus_is_told(cluster: Cluster) -> None:
    text = httpx2.get(f"http://127.0.0.1:{cluster.page_port}/metrics", timeout=20, trust_env=False).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("slipstream_precise_"))
    assert float(values["slipstream_precise_matched_total"]) > 0
    assert float(values['slipstream_precise_blocks{model="tiny"}']) > 0
    assert float(values['slipstream_precise_replicas{model="tiny"}']) == 3


def test_other_requests_go_by_their_text(cluster: Cluster) -> None:
    before = dict(status(cluster).precise.fallbacks)
    body = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 1}
    answer = httpx2.post(f"{cluster.url}/v1/completions", json=body, timeout=30, trust_env=False)
    assert answer.status_code == 200
    assert status(cluster).precise.fallbacks["several_prompts"] == before.get("several_prompts", 0) + 1


KEYS = {tenant: f"key-of-{tenant}" for tenant in ("a", "b")}
ISOLATED = f"""
cluster: precise-isolated
gateway: {{listen: ["127.0.0.1:GATEWAY_PORT"], decision_timeout_ms: 500}}
admin: {{page: "127.0.0.1:PAGE_PORT"}}
nodes: [{{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}}]
api_keys:
  required: true
  keys:
    - {{name: a, tenant: a, sha256: {hashlib.sha256(KEYS["a"].encode()).hexdigest()}}}
    - {{name: b, tenant: b, sha256: {hashlib.sha256(KEYS["b"].encode()).hexdigest()}}}
models:
  - name: tiny
    isolate_cache: true
    routing: {{precise: true}}
    pools:
      - name: tiny
        replicas: 3
        engine: {{kind: simulated, startup_s: 0, step_base_ms: 0.5, max_model_tokens: 65536}}
"""


def test_isolated_tenants_are_matched_each_with_its_own() -> None:
    """A router that has restarted knows each tenant's salt, and what is cached under it."""
    with running(ISOLATED) as cluster:

        def ask(tenant: str, number: int) -> tuple[str, int]:
            content = f"conversation {number} " * 300
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
            headers = {"authorization": f"Bearer {KEYS[tenant]}"}
            url = f"{cluster.url}/v1/chat/completions"
            answer = httpx2.post(url, json=body, headers=headers, timeout=30, trust_env=False)
            answer.raise_for_status()
            details = answer.json()["usage"].get("prompt_tokens_details") or {}
            return replica_of(answer), int(details.get("cached_tokens", 0))

        until(
            lambda: status(cluster).precise.models, lambda models: bool(models) and models[0].tokenizer, "a tokenizer"
        )
        chosen = {(tenant, number): ask(tenant, number) for number in range(4) for tenant in ("a", "b")}
        assert not any(cached for _, cached in chosen.values())
        settled(cluster, 8 * 70)
        cluster.wait_new_pid("router", cluster.kill("router"))
        until(
            lambda: status_or_none(cluster), lambda found: found is not None and bool(found.precise.models), "a router"
        )
        settled(cluster, 8 * 70)
        until(lambda: status(cluster).precise.models, lambda models: models[0].tokenizer, "a tokenizer")
        # Until its check has passed, HAProxy balances by itself.
        until(lambda: (ask("a", 99), status(cluster).decisions)[1], lambda count: count > 0, "HAProxy to ask again")
        for (tenant, number), (replica, _) in chosen.items():
            again, cached = ask(tenant, number)
            assert again == replica and cached > 1000
