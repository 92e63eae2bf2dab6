"""Cache isolation and the feedback of engines, through a whole cluster and with real requests."""

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

KEYS = {tenant: f"key-of-{tenant}" for tenant in ("a", "b")}
SPEC = f"""
cluster: isolated
gateway: {{listen: ["127.0.0.1:GATEWAY_PORT"]}}
admin: {{page: "127.0.0.1:PAGE_PORT"}}
nodes: [{{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}}]
api_keys:
  required: true
  keys:
    - {{name: a, tenant: a, sha256: {hashlib.sha256(KEYS["a"].encode()).hexdigest()}}}
    - {{name: b, tenant: b, sha256: {hashlib.sha256(KEYS["b"].encode()).hexdigest()}}}
models:
  - name: private
    isolate_cache: true
    pools: [{{name: private, replicas: 1, engine: {{kind: simulated}}}}]
  - name: shared
    pools: [{{name: shared, replicas: 1, engine: {{kind: simulated}}}}]
"""
#: Three blocks of the router's, and many of the engine's.
TEXT = "a sentence that only this prompt has; " * 400


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(SPEC) as cluster:
        yield cluster


def cached(cluster: Cluster, path: str, tenant: str, body: dict[str, Any], **headers: str) -> int:
    """Send a request as a tenant; return how many prompt tokens the engine found cached."""
    headers["authorization"] = f"Bearer {KEYS[tenant]}"
    answer = httpx2.post(f"{cluster.url}{path}", json=body, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens", usage.get("cache_read_input_tokens", 0)))


def bodies(model: str, mark: str) -> dict[str, dict[str, Any]]:
    messages = [{"role": "user", "content": mark + TEXT}]
    return {
        "/v1/chat/completions": {"model": model, "messages": messages, "max_tokens": 2},
        "/v1/completions": {"model": model, "prompt": mark + "completion " + TEXT, "max_tokens": 2},
        "/v1/responses": {"model": model, "input": mark + "response " + TEXT, "max_output_tokens": 2},
        "/v1/messages": {
            "model": model,
            "messages": [{"role": "user", "content": mark + "message " + TEXT}],
            "max_tokens": 2,
        },
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_no_tenant_meets_what_another_has_cached(cluster: Cluster, path: str) -> None:
    """Not with its own salt either, nor with a header that names the other tenant."""
    body = bodies("private", path)[path]
    assert cached(cluster, path, "a", body) == 0
    assert cached(cluster, path, "a", body) > 1_000
    salted = {**body, "cache_salt": "a"}
    forged = {"x-slipstream-tenant": "a", "x-slipstream-salt": "0" * 40}
    assert cached(cluster, path, "b", salted, **forged) == 0
    assert cached(cluster, path, "b", body) > 1_000, "its own is found: the salt that it wrote was not used"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_without_isolation_they_share(cluster: Cluster, path: str) -> None:
    body = bodies("shared", path)[path]
    assert cached(cluster, path, "a", body) == 0
    assert cached(cluster, path, "b", body) > 1_000
    assert cached(cluster, path, "b", {**body, "cache_salt": "mine"}) == 0, "a client's own salt counts here"


def router_status(cluster: Cluster) -> pb.RouterStatusResponse:
    with grpc.insecure_channel(f"unix:{cluster.state}/run/router.sock") as channel:
        return RoutingServiceStub(channel).Status(pb.RouterStatusRequest())


def test_what_engines_tell_arrives(cluster: Cluster) -> None:
    """Predicted and found tokens are compared per model; nothing is left in flight; figures are read."""
    path = "/v1/chat/completions"
    body = bodies("private", "told")[path]
    found = sum(cached(cluster, path, "a", body) for _ in range(3))
    assert found > 2_000

    def reported() -> dict[str, int]:
        return {one.model: one.reported_tokens for one in router_status(cluster).cache_predictions if not one.adapter}

    until(reported, lambda known: known.get("private", 0) >= found, "the engines' cached tokens are known")
    told = router_status(cluster)
    assert told.reports["finished"] >= 3
    assert not told.reports_ignored["malformed"] and not told.reports_ignored["impossible"]
    assert not told.reports_dropped
    assert all(load.waiting == load.queued_tokens == 0 for load in told.replicas)

    def ages() -> list[float]:
        return [load.telemetry_age_s for load in router_status(cluster).replicas]

    until(ages, lambda found: all(age >= 0 for age in found), "every engine's figures were read")
    page = httpx2.get(f"http://127.0.0.1:{cluster.page_port}/metrics", timeout=10, trust_env=False).text
    assert 'slipstream_prefix_prediction_ratio{adapter="",model="private"}' in page
    assert 'slipstream_replica_queued_tokens{pool="private",replica="private-0"} 0.0' in page


def test_a_cleared_cache_is_heard_of(cluster: Cluster) -> None:
    before = router_status(cluster).reports["cache_cleared"]
    for view in cluster.json("get", "replicas"):
        url = f"http://{view['replica']['host']}:{view['replica']['port']}"
        assert httpx2.post(f"{url}/reset_prefix_cache", timeout=10, trust_env=False).status_code == 200
    until(lambda: router_status(cluster).reports["cache_cleared"], lambda n: n >= before + 2, "the router knows")
