"""A saturated model: who waits, who overtakes, who is told to come back, and what happens when the router dies."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import httpx2
import pytest

from controlplane.cli.client import routing as client_of_router
from dataplane.pb import routing_pb2
from dataplane.state_dir import StateDir
from tests.integration.cluster import Cluster, running, until

#: 0.2 s of prefill for each prompt of the tests, at two replicas.
SATURATED = """
cluster: saturated
gateway: {listen: ["127.0.0.1:GATEWAY_PORT"]}
admin: {page: "127.0.0.1:PAGE_PORT"}
nodes: [{name: local, address: 127.0.0.1, ports: ENGINE_PORTS}]
api_keys: {keys: [KEYS]}
models:
  - name: demo
    routing:
      parameters: {prefill_tokens_per_s: 5000}
      admission:
        ttft_target_s: 0.25
        tenant_requests: 16
        timeouts_s: {low: 2, normal: 15, high: 15}
        guaranteed_share: 0
        weights: {big: 3}
    pools:
      - {name: demo, replicas: 2, engine: {kind: simulated, prefill_us_per_token: 200}}
"""
_numbers = count(1)
KEYS = {"big": "high", "small": "", "modest": "low"}


@dataclass(frozen=True, slots=True)
class Answer:
    tenant: str
    status: int
    retry_after: str
    code: str


def _spec() -> str:
    keys = (
        f"{{name: {name}, tenant: {name}, sha256: {hashlib.sha256(name.encode()).hexdigest()}, priority: '{priority}'}}"
        for name, priority in KEYS.items()
    )
    return SATURATED.replace("[KEYS]", f"[{', '.join(keys)}]")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(_spec()) as cluster:
        yield cluster


class Clients:
    """Requests of several tenants; ``order`` is that of the answers."""

    def __init__(self, cluster: Cluster) -> None:
        limits = httpx2.Limits(max_connections=200)
        self.http = httpx2.AsyncClient(base_url=cluster.url, timeout=30, limits=limits, trust_env=False)
        self.order: list[str] = []
        self.ids: list[str] = []

    async def ask(self, tenant: str = "", priority: str = "") -> Answer:
        headers = {"authorization": f"Bearer {tenant}"} if tenant else {}
        if priority:
            headers["x-slipstream-priority"] = priority
        text = f"{next(_numbers)} " + "word " * 800  # no replica has it cached
        body = {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        got = await self.http.post("/v1/chat/completions", json=body, headers=headers)
        self.ids.append(got.headers["x-slipstream-request-id"])
        self.order.append(f"{tenant}:{priority}")
        error = got.json().get("error", {})
        return Answer(tenant, got.status_code, got.headers.get("retry-after", ""), error.get("code", ""))

    def start(self, number: int, tenant: str = "", priority: str = "") -> list[asyncio.Task[Answer]]:
        return [asyncio.create_task(self.ask(tenant, priority)) for _ in range(number)]


def _status(cluster: Cluster) -> routing_pb2.RouterStatusResponse:
    with client_of_router(StateDir(cluster.state)) as stub:
        answer: routing_pb2.RouterStatusResponse = stub.Status(routing_pb2.RouterStatusRequest())
    return answer


def _waiting(cluster: Cluster) -> int:
    return sum(one.waiting for one in _status(cluster).admissions)


async def _until_waiting(cluster: Cluster, number: int) -> None:
    await asyncio.to_thread(until, lambda: _waiting(cluster), lambda n: n >= number, f"{number} wait")


def _assert_all_is_zero(cluster: Cluster) -> None:
    def counts() -> Counter[str]:
        status = _status(cluster)
        found: Counter[str] = Counter()
        for one in status.admissions:
            found.update(waiting=one.waiting, tokens=one.waiting_tokens)
        for load in status.replicas:
            found.update(in_flight=load.in_flight, prefill=load.waiting, context=load.context_tokens)
        return +found

    until(counts, lambda found: not found, "every count is 0 again")


async def test_urgent_ones_overtake_tenants_share_and_the_surplus_is_refused(cluster: Cluster) -> None:
    clients = Clients(cluster)
    filler = clients.start(6)
    await _until_waiting(cluster, 2)
    small = clients.start(16, "small")
    big = clients.start(16, "big")
    late = clients.start(2, "modest")
    await _until_waiting(cluster, 30)
    surplus = clients.start(12, "small")
    high = clients.start(3, "big", "high")
    answers = await asyncio.gather(*filler, *small, *big, *high)
    refused = [answer for answer in await asyncio.gather(*surplus) if answer.status != 200]
    assert {(a.status, a.code) for a in await asyncio.gather(*late)} == {(429, "overloaded")}
    await clients.http.aclose()
    assert {answer.status for answer in answers} == {200}
    assert refused and {(a.status, a.code) for a in refused} == {(429, "overloaded")}
    assert all(1 <= int(answer.retry_after) <= 60 for answer in refused)
    answered = [one for one in clients.order if one != ":"]
    last_high = max(index for index, one in enumerate(answered) if one == "big:high")
    normal_before = Counter(answered[:last_high])["big:"]
    assert normal_before < 12, answered
    fair = [one for one in clients.order if one in {"big:", "small:"}]
    while fair and fair[-1] == "small:":
        fair.pop()  # from here on only one of them waited
    shares = Counter(fair)
    # Refused ones are answered at once and stand in the list, too.
    assert shares["big:"] >= 1.5 * (shares["small:"] - len(refused)), clients.order
    sheds: Counter[str] = Counter()
    for one in _status(cluster).admissions:
        sheds.update(one.shed)
    assert sheds == {"tenant_requests": len(refused), "timeout": len(late)}
    _assert_all_is_zero(cluster)


async def test_a_priority_counts_as_far_as_the_key_allows(cluster: Cluster) -> None:
    clients = Clients(cluster)
    before = {one.priority: one.waited for one in _status(cluster).admissions}
    filler = clients.start(6)
    await _until_waiting(cluster, 2)
    asked = clients.start(2, "small", "high") + clients.start(2, "", "high") + clients.start(2, "big", "HIGH")
    low = clients.start(2, "modest", "high")
    answers = await asyncio.gather(*filler, *asked, *low)
    await clients.http.aclose()
    waited = {one.priority: one.waited - before[one.priority] for one in _status(cluster).admissions}
    assert waited["high"] == 2 and waited["low"] == 2 and waited["normal"] >= 6
    assert {answer.status for answer in answers} == {200}
    _assert_all_is_zero(cluster)


async def _ask_and_leave(cluster: Cluster, gone: asyncio.Event) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
    body = json.dumps({"model": "demo", "prompt": f"{next(_numbers)} " + "word " * 800, "max_tokens": 1})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer modest\r\ncontent-length: {len(body)}\r\n"
    )
    writer.write(f"{head}\r\n{body}".encode())
    await gone.wait()
    writer.close()
    await writer.wait_closed()


async def test_clients_that_leave_hold_nobody_up(cluster: Cluster) -> None:
    clients = Clients(cluster)
    staying = clients.start(16) + clients.start(16, "big")
    gone = asyncio.Event()
    leaving = [asyncio.create_task(_ask_and_leave(cluster, gone)) for _ in range(16)]
    await _until_waiting(cluster, 40)
    gone.set()
    await asyncio.gather(*leaving)
    assert {answer.status for answer in await asyncio.gather(*staying)} == {200}
    await clients.http.aclose()
    _assert_all_is_zero(cluster)


async def test_a_receipt_tells_of_the_wait(cluster: Cluster) -> None:
    clients = Clients(cluster)
    tasks = clients.start(8)
    await _until_waiting(cluster, 3)
    await asyncio.gather(*tasks)
    await clients.http.aclose()
    with client_of_router(StateDir(cluster.state)) as stub:
        receipts = [stub.Explain(routing_pb2.ExplainRequest(request_id=one)) for one in clients.ids]
    waited = [receipt.waited_ms for receipt in receipts]
    assert {receipt.outcome for receipt in receipts} == {"go"} and max(waited) > 100, waited
    shown = cluster.cli("why", receipts[waited.index(max(waited))].request_id)
    assert "waited" in shown.stdout


async def test_killing_the_router_fails_none_that_wait(cluster: Cluster) -> None:
    clients = Clients(cluster)
    tasks = clients.start(12) + clients.start(12, "big")
    await _until_waiting(cluster, 16)
    old = cluster.kill("router")
    answers = await asyncio.gather(*tasks)
    assert Counter(answer.status for answer in answers) == {200: 24}
    cluster.wait_new_pid("router", old, seconds=10)
    assert {answer.status for answer in await asyncio.gather(*clients.start(4))} == {200}
    await clients.http.aclose()
    _assert_all_is_zero(cluster)
