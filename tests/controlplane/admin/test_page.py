from __future__ import annotations

import asyncio
import re

import pytest
from httpx2 import AsyncClient
from prometheus_client.parser import text_string_to_metric_families

from controlplane.admin import metrics, router_feed
from controlplane.admin.router_feed import RouterFeed
from controlplane.errors import StoreFull
from dataplane.pb import routing_pb2
from tests.controlplane.admin.router import Router
from tests.controlplane.controller.agent import until
from tests.controlplane.controller.conftest import Bench

RECEIPT = routing_pb2.Receipt(
    request_id="abc-1",
    decided_unix_us=1_700_000_000_000_000,
    kind="chat",
    model="tiny",
    outcome="go",
    pool="tiny-mixed",
    server="tiny-mixed-0.g1",
    policy="prefix",
    reason="longest_prefix",
    runner_up="tiny-mixed-1.g2",
    margin=1.5,
    eligible=2,
    rejected={"draining": 1},
    candidates=[
        routing_pb2.Candidate(
            server="tiny-mixed-0.g1",
            score=0.5,
            signals=[
                routing_pb2.Signal(name="in_flight", value=3, age_ms=12),
                routing_pb2.Signal(name="prefix_blocks", value=4, age_ms=-1),
            ],
        )
    ],
)


async def test_every_answer_has_strict_headers(page: AsyncClient) -> None:
    for path in ("/", "/page.css", "/page.js", "/healthz", "/metrics", "/api/state", "/nothing", "/api/state?after=x"):
        answer = await page.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"


async def test_the_page_needs_nothing_from_elsewhere(page: AsyncClient) -> None:
    html, css, script = [(await page.get(path)).text for path in ("/", "/page.css", "/page.js")]
    for text in (html, css, script):
        assert not re.search(r"https?://|@import|url\(", text)
    assert "<script>" not in html
    assert not re.search(r"\son[a-z]+=|style=", html), "the policy forbids inline handlers and styles"
    assert "innerHTML" not in script
    ids = set(re.findall(r'byId\("([^"]+)"\)', script))
    assert ids <= set(re.findall(r'id="([^"]+)"', html))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", "", "a" * 400, "[::1"])
async def test_a_rebound_name_is_refused(page: AsyncClient, host: str) -> None:
    answer = await page.get("/api/state", headers={"host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost:9", "LOCALHOST", "[::1]:8001", "10.1.2.3"])
async def test_addresses_cannot_be_rebound(page: AsyncClient, host: str) -> None:
    assert (await page.get("/healthz", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
async def test_only_get(page: AsyncClient, method: str) -> None:
    answer = await page.request(method, "/api/state")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


async def test_there_is_no_schema_and_no_listing(page: AsyncClient) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/page/", "/../app.py", "//etc/passwd"):
        assert (await page.get(path)).status_code == 404


async def test_health_is_of_the_loop_and_the_store(
    page: AsyncClient, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.controller is not None

    async def full() -> None:
        raise StoreFull("full")

    monkeypatch.setattr(bench.controller.ledger.store, "check", full)
    answer = await page.get("/healthz")
    assert (answer.status_code, answer.json()["store"]) == (503, "store_full")
    monkeypatch.undo()
    assert (await page.get("/healthz")).json() == {"status": "ok", "loop": "ok", "store": "ok"}
    monkeypatch.setattr(bench.controller.reconciler, "looked_at_s", -1e9)
    answer = await page.get("/healthz")
    assert (answer.status_code, answer.json()["loop"]) == (503, "stuck")


async def test_state_shows_replicas_with_their_load(page: AsyncClient, bench: Bench, router: Router) -> None:
    bench.agent().streams = {"tiny-mixed-0.g1": 2}
    await bench.apply(2)
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "ready"})
    load = routing_pb2.ReplicaLoad(server="tiny-mixed-0.g1", pool="tiny-mixed", in_flight=3, first_byte_ms=12.5)
    router.status.replicas.append(load)
    router.status.decisions = 17
    shown = (await page.get("/api/state")).json()
    assert (shown["cluster"], shown["revision"]) == ("test", 1)
    assert shown["router"]["decisions"] == 17
    first, second = shown["replicas"]
    assert (first["server"], first["state"], first["streams"]) == ("tiny-mixed-0.g1", "ready", 2)
    assert (first["in_flight"], first["first_byte_ms"]) == (3, 12.5)
    assert second["in_flight"] is None
    assert [e["reason"] for e in shown["events"]][:1] == ["spec_applied"]
    assert shown["pools"] == [
        {"name": "tiny-mixed", "model": "tiny", "role": "mixed", "kind": "simulated", "wanted": 2, "ready": 2}
    ]


async def test_without_a_router_the_page_still_works(page: AsyncClient) -> None:
    shown = (await page.get("/api/state")).json()
    assert shown["router"] is None
    assert shown["decisions"] == []
    assert "slipstream_router_up 0.0" in (await page.get("/metrics")).text


async def test_decisions_come_and_are_explained(page: AsyncClient, router: Router) -> None:
    await page.get("/api/state")
    await until(lambda: router.watchers == 1, "the page watches")
    router.decide(RECEIPT)
    shown: list[dict[str, object]] = []
    deadline = asyncio.get_running_loop().time() + 10
    while not shown:
        assert asyncio.get_running_loop().time() < deadline
        state = (await page.get("/api/state")).json()
        shown = state["decisions"]
        await asyncio.sleep(0.01)
    assert shown == [
        {
            "number": 1,
            "request_id": "abc-1",
            "unix_ms": 1_700_000_000_000,
            "kind": "chat",
            "model": "tiny",
            "outcome": "go",
            "server": "tiny-mixed-0.g1",
            "reason": "longest_prefix",
        }
    ]
    assert state["decisions_skipped"] == 2
    assert (await page.get("/api/state?after=1")).json()["decisions"] == []
    whole = (await page.get("/api/decisions/abc-1")).json()
    assert whole["candidates"][0]["signals"][1] == {"name": "prefix_blocks", "value": 4.0, "age_ms": None}
    assert whole["rejected"] == {"draining": 1}
    assert (await page.get("/api/decisions/nope")).status_code == 404
    assert (await page.get("/api/decisions/" + "a" * 500)).status_code == 404


async def test_nobody_looks_so_nothing_is_watched(
    bench: Bench, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_feed, "RETRY_S", 0.02)
    now = 0.0
    feed = RouterFeed(bench.state.router_socket, lambda: now)
    feed.decisions(0)
    await until(lambda: router.watchers == 1, "it watches")
    now = router_feed.VIEWER_GONE_S
    await until(lambda: router.watchers == 0, "it lets go")
    feed.decisions(0)
    await until(lambda: router.watchers == 1, "it watches again")
    await feed.close()


async def test_decisions_are_bounded(bench: Bench, router: Router) -> None:
    feed = RouterFeed(bench.state.router_socket)
    feed.decisions(0)
    for number in range(router_feed.MAX_DECISIONS + 50):
        router.decide(routing_pb2.Receipt(request_id=str(number)))
    await until(lambda: feed.last == router_feed.MAX_DECISIONS + 50, "all came")
    assert len(feed.decisions(0)) == router_feed.MAX_DECISIONS
    await feed.close()


async def test_many_viewers_cost_the_router_one_question(page: AsyncClient, router: Router) -> None:
    await asyncio.gather(*(page.get("/api/state") for _ in range(20)))
    assert router.asked <= 2


async def test_metrics(page: AsyncClient, bench: Bench, router: Router) -> None:
    bench.agent()
    await bench.apply(2)
    await bench.until_states({"tiny-mixed-0.g1": "ready", "tiny-mixed-1.g2": "ready"})
    router.status.decisions = 9
    router.status.decisions_by_reason["longest_prefix"] = 8
    text = (await page.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith("slipstream_") for name in families)
    ready = {(s.labels["pool"], s.labels["state"]): s.value for s in families["slipstream_replicas"].samples}
    assert ready["tiny-mixed", "ready"] == 2
    assert ready["tiny-mixed", "failed"] == 0
    assert families["slipstream_router_decisions"].samples[0].value == 9
    assert families["slipstream_topology_number"].samples[0].value == bench.number()
    assert families["slipstream_reconcile_actions"].samples[0].value == 2
    (reason,) = families["slipstream_router_decisions_by_reason"].samples
    assert (reason.labels, reason.value) == ({"reason": "longest_prefix"}, 8)


async def test_labels_are_bounded(page: AsyncClient, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_LABEL_VALUES", 3)
    for number in range(10):
        router.status.decisions_by_reason[f"reason_{number}"] = 1
    text = (await page.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {s.labels["reason"]: s.value for s in families["slipstream_router_decisions_by_reason"].samples}
    assert values == {"reason_0": 1, "reason_1": 1, "reason_2": 1, "other": 7}
