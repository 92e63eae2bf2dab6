"""The gateway with the real HAProxy: what passes, what is answered at the edge, and how it changes while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import re
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import xxhash

from dataplane.errors import EDGE_ERRORS, DataplaneError
from dataplane.gateway import limits, runtime
from dataplane.gateway.applier import Gateway
from dataplane.gateway.errors import CheckFailed
from dataplane.gateway.render import KINDS
from dataplane.middleware.cache_salt import SALT
from dataplane.names import pin_key
from dataplane.pb import gateway_pb2, topology_pb2
from tests import ports
from tests.dataplane.gateway import orders
from tests.dataplane.gateway.conftest import Lab, until
from tests.dataplane.gateway.spop_peer import Question

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def check_error(response: httpx2.Response, code: str) -> None:
    assert response.status_code == EDGE_ERRORS[code].status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == code
    assert response.headers["x-slipstream-request-id"]


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(65536), 15)
    finally:
        writer.close()


async def one_model(lab: Lab, count: int = 2, **extra: object) -> list[topology_pb2.Replica]:
    replicas = await lab.add_replicas("a", count)
    await lab.apply([orders.model("m", ["a"], ["lora"])], replicas, **extra)
    return replicas


async def test_only_listed_paths_and_methods_reach_a_replica(lab: Lab) -> None:
    await one_model(lab)
    for path in KINDS:
        assert (await lab.post(CHAT, path)).status_code == 200, path
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            got = await lab.client.request(method, path)
            check_error(got, "method_not_allowed")
            assert got.headers["allow"] == "POST"
    reached = sum(len(r.received) for r in lab.replicas.values())
    assert reached == len(KINDS)
    for line in (
        "GET /metrics", "POST /pause", "POST /sleep", "POST /update_weights", "POST /invocations", "GET /v1/../metrics",
        "GET /v1/%2e%2e/metrics", "POST /v1//chat/completions", "POST //v1/chat/completions",
        "POST /V1/chat/completions",
        "POST /v1/chat/completions/", "POST /v1/chat/completions/../../pause", "POST /v1/chat%2fcompletions",
        "TRACE /", "OPTIONS *", "GET /v1/responses/a/b", "GET /v1/responses/", "GET /" + "a" * 5000,
    ):  # fmt: skip
        answer = await raw(lab.port, f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in answer.split(b"\r\n")[0], (line, answer[:100])
        assert b"path_not_found" in answer
    connect = await raw(lab.port, b"CONNECT metrics:80 HTTP/1.1\r\nHost: metrics:80\r\n\r\n")
    assert connect.split(b" ")[1] in (b"404", b"405", b"400")
    assert sum(len(r.received) for r in lab.replicas.values()) == reached
    assert lab.log == []


async def test_local_answers(lab: Lab) -> None:
    await one_model(lab)
    listed = (await lab.client.get("/v1/models")).json()
    assert [(m["id"], m["parent"]) for m in listed["data"]] == [("m", None), ("lora", "m")]
    assert (await lab.client.get("/v1/models/lora")).json()["parent"] == "m"
    head = await lab.client.head("/v1/models")
    assert head.status_code == 200 and head.content == b""
    check_error(await lab.client.get("/v1/models/none"), "model_not_found")
    check_error(await lab.post(CHAT, "/v1/models"), "method_not_allowed")
    assert (await lab.client.get("/health")).json() == {"status": "ok"}


async def test_the_router_names_the_replica_and_hears_how_it_ended(lab: Lab) -> None:
    await lab.start_log()
    await one_model(lab)
    lab.decide = lambda message, question: {"pool": "a", "srv": "a-1.g1"}
    await lab.router_up()
    await until(lambda: len(lab.log) >= 1, "log line")
    lab.log.clear()
    got = await lab.post(CHAT)
    assert got.json()["replica"] == got.headers["x-slipstream-replica"] == "a-1.g1"
    unique = got.headers["x-slipstream-request-id"]
    line = re.compile(rf"R {unique} a a-1\.g1 200 \d+ \d+ \d+ -- 0\n?")
    await until(lambda: [bool(line.fullmatch(one)) for one in lab.log].count(True) == 1, "log line")
    message, question = lab.router.asked[-1]
    assert message == "whole" and question["id"].decode() == unique
    assert list(question) == ["id", "kind", "tenant", "size", "model", "body"]
    assert (question["kind"], question["tenant"], question["model"]) == (b"1", b"", b"")
    assert json.loads(question["body"]) == CHAT and int(question["size"]) == len(question["body"])


def spaced(size: int) -> bytes:
    return b'{"model":"m"' + b" " * (size - 13) + b"}"


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 30_000):
        yield body[at : at + 30_000]


async def test_what_the_router_is_sent(lab: Lab) -> None:
    replicas = await lab.add_replicas("a", 1)
    models = [orders.model("m", ["a"], (), ["x-session-id"]), orders.model("n", [], (), ["user", "x-correlation-id"])]
    buffer = limits.MIN_BUFFER_BYTES  # small enough for the end of a chunked body to be unknown
    await lab.apply(models, replicas, buffer_bytes=buffer)
    lab.decide = lambda message, question: {"pool": "a", "srv": "a-0.g1"}
    await lab.router_up()
    limit = limits.WHOLE_BYTES

    async def asked(
        content: bytes | AsyncIterator[bytes], path: str = "/v1/chat/completions", **headers: str
    ) -> tuple[str, Question]:
        lab.router.asked.clear()
        got = await lab.post(None, path, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()})
        assert got.status_code == 200, got.text
        (one,) = lab.router.asked
        return one

    message, question = await asked(spaced(limit), x_session_id="s" * 3000, x_slipstream_model="m" * 300)
    assert message == "whole" and question["body"] == spaced(limit) and question["size"] == b"%d" % limit
    assert question["h.x-session-id"] == b"s" * 2048 and question["model"] == b"m" * 256
    assert list(question)[4:] == ["model", "h.x-session-id", "h.x-correlation-id", "body"]
    assert question["h.x-correlation-id"] == b""
    assert (await asked(spaced(limit + 1)))[0] == "route"
    # A chunked body tells its length only by its end, which a full buffer hides.
    ends = limits.surely_whole_bytes(buffer) - 1
    assert 0 < ends < limit
    message, question = await asked(pieces(spaced(ends)))
    assert message == "whole" and question["body"] == spaced(ends) and question["size"] == b"%d" % ends
    assert (await asked(pieces(spaced(ends + 1))))[0] == "route"
    message, question = await asked(b"")
    assert (message, question["size"], question["body"]) == ("whole", b"0", b"")
    message, question = await asked(spaced(limit), x_pad="p" * 60_000)
    assert message == "whole" and question["body"] == spaced(limit), "long headers leave room for all of it"
    assert (await asked(spaced(99), "/v1/audio/transcriptions"))[0] == "route"
    assert (await asked(spaced(99), "/tokenize"))[1]["kind"] == b"12"


async def test_the_record_of_a_long_body_has_the_hashes_of_its_blocks(lab: Lab) -> None:
    await one_model(lab)
    lab.decide = lambda message, question: {"pool": "a", "srv": "a-0.g1"}
    await lab.router_up()
    body = b'{"model":"m","messages":"' + bytes(97 + at // 5 % 26 for at in range(140_000)) + b'"}'
    assert (await lab.post(content=body)).status_code == 200
    message, question = lab.router.asked[-1]
    assert message == "route"
    record = question["f"]
    start = body.index(b'"messages"')
    blocks = [xxhash.xxh3_64_intdigest(body[at : min(at + 4096, 131_072)]) for at in range(start, 131_072, 4096)]
    assert record.endswith(struct.pack(f"<{len(blocks)}Q", *blocks))


async def test_more_sends_the_body(lab: Lab) -> None:
    await one_model(lab)
    lab.decide = lambda message, question: {"more": "1"} if message == "route" else {"pool": "a", "srv": "a-0.g1"}
    await lab.router_up()
    body = json.dumps({**CHAT, "pad": "x" * 900_000}).encode()
    assert (await lab.post(content=body)).json() == {"replica": "a-0.g1", "bytes": len(body)}
    message, question = lab.router.asked[-1]
    assert (message, question["body"]) == ("full", body)


async def test_a_router_that_says_nothing_costs_one_decision_timeout(lab: Lab) -> None:
    await one_model(lab)
    await lab.router_up()
    for body in (CHAT, {**CHAT, "pad": "x" * 200_000}):
        lab.router.asked.clear()
        assert (await lab.post(body)).status_code == 200
        assert len(lab.router.asked) == 1


@pytest.mark.parametrize("code", ["model_not_found", "invalid_json", "no_replica_available", "internal_error"])
async def test_the_routers_refusals_are_answered(lab: Lab, code: str) -> None:
    await one_model(lab, 1)
    lab.decide = lambda message, question: {"err": code}
    await lab.router_up()
    check_error(await lab.post(CHAT), code)
    lab.decide = lambda message, question: {"shed": 7}
    shed = await lab.post(CHAT)
    check_error(shed, "overloaded")
    assert shed.headers["retry-after"] == "7"


async def test_without_a_router_each_request_reaches_its_models_pool(lab: Lab) -> None:
    replicas = await lab.add_replicas("a", 2) + await lab.add_replicas("b", 2)
    await lab.apply([orders.model("m", ["a"], ["lora"]), orders.model("n", ["b"])], replicas)

    async def pool_of(**body: object) -> str:
        got = await lab.post({**CHAT, **body})
        return str(got.json()["replica"])[0] if got.status_code == 200 else str(got.json()["error"]["code"])

    assert {await pool_of(model="m") for _ in range(4)} == {"a"}
    assert [await pool_of(model="lora"), await pool_of(model="n"), await pool_of(model="x")] == [
        "a",
        "b",
        "model_not_found",
    ]
    assert await pool_of(model="n", metadata={"model": "m"}) == "b"
    check_error(await lab.post({"messages": []}), "model_required")
    check_error(await lab.post(content=b""), "model_required")
    big = b'{"messages":"' + b"x" * (2 << 20) + b'","model":"n"}'
    check_error(await lab.post(content=big), "model_not_visible")
    seen = await lab.post(content=big, headers={"x-slipstream-model": "n"})
    assert seen.json()["bytes"] == len(big) and seen.json()["replica"].startswith("b-")
    pin = pin_key("b-1.g1")
    got = await lab.client.get(f"/v1/responses/resp_{pin}_ab?stream=true")
    assert got.json()["replica"] == "b-1.g1"
    assert (await lab.post(path=f"/v1/responses/resp_{pin}_ab/cancel")).json()["replica"] == "b-1.g1"
    check_error(await lab.client.get("/v1/responses/resp_ffffffff_ab"), "response_not_found")
    check_error(await lab.client.delete(f"/v1/responses/resp_{pin}_ab"), "method_not_allowed")
    chained = {"model": "n", "input": "x", "previous_response_id": f"resp_{pin}_ab"}
    assert (await lab.post(chained, "/v1/responses")).json()["replica"] == "b-1.g1"


async def test_headers(lab: Lab) -> None:
    await one_model(lab, 1, replica_header=False)
    sent = {
        "x-slipstream-tenant": "evil", "x-slipstream-prefill": "evil", "x-slipstream-model": "m",
        "Connection": "x-slipstream-tenant, x-request-id, keep-alive", "x-request-id": "mine",
        "authorization": "Bearer k",
    }  # fmt: skip
    got = await lab.post(CHAT, headers=sent)
    assert "x-slipstream-replica" not in got.headers
    headers = lab.replicas["a-0.g1"].received[-1].headers
    assert [name for name in headers if name.startswith("x-slipstream")] == ["x-slipstream-request-id"]
    assert headers["x-slipstream-request-id"] == got.headers["x-slipstream-request-id"]
    assert headers["x-request-id"] == "mine" and headers["authorization"] == "Bearer k"
    assert "x-slipstream" not in headers.get("connection", "")
    forged = await lab.post(CHAT, headers={"x-slipstream-request-id": "evil", "x-slipstream-salt": "0" * 40})
    headers = lab.replicas["a-0.g1"].received[-1].headers
    assert headers["x-request-id"] == forged.headers["x-slipstream-request-id"]
    assert not [name for name in headers if name.startswith("x-slipstream")]


async def test_bodies_over_the_limit(lab: Lab) -> None:
    await one_model(lab, 1, max_body_bytes=100_000)
    check_error(await lab.post(content=b"x" * 100_001), "body_too_large")

    async def chunks() -> object:
        for _ in range(3):
            yield b"x" * 50_000

    check_error(await lab.post(content=chunks()), "body_too_large")
    assert lab.replicas["a-0.g1"].received == []
    check_error(await lab.post(CHAT, headers={"x-big": "x" * 70_000}), "headers_too_large")


async def test_a_20_mb_body_streams(lab: Lab) -> None:
    await one_model(lab, 1)
    lab.replicas["a-0.g1"].keep_bodies = False
    size = 20_000_000
    assert (await lab.post(content=b'{"model":"m"' + b" " * (size - 13) + b"}")).json()["bytes"] == size

    async def chunks() -> object:
        for _ in range(20):
            yield b"x" * 1_000_000

    assert (await lab.post(content=chunks())).json()["bytes"] == size


def key(name: str, secret: str) -> gateway_pb2.ApiKey:
    return gateway_pb2.ApiKey(name=name, tenant=f"t-{name}", sha256=hashlib.sha256(secret.encode()).hexdigest())


async def test_api_keys(lab: Lab) -> None:
    replicas = await one_model(lab, 1, keys=[key("one", "sk-one")], require_api_key=True)
    received = lab.replicas["a-0.g1"].received
    check_error(await lab.post(CHAT), "invalid_api_key")
    wrong = await lab.post(CHAT, headers={"authorization": "Bearer sk-two"})
    check_error(wrong, "invalid_api_key")
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert (await lab.client.get("/health")).status_code == 200
    assert received == []
    for sent in ({"authorization": "Bearer sk-one"}, {"x-api-key": "sk-one"}):
        assert (await lab.post(CHAT, headers=sent)).status_code == 200
        assert received[-1].headers["x-slipstream-tenant"] == "t-one"
        assert not {"authorization", "x-api-key"} & received[-1].headers.keys()
    worker = await runtime.process_id(lab.state.haproxy_socket)
    await lab.apply([orders.model("m", ["a"], ["lora"])], replicas, keys=[key("two", "sk-two")], require_api_key=True)
    assert await runtime.process_id(lab.state.haproxy_socket) == worker
    check_error(await lab.post(CHAT, headers={"authorization": "Bearer sk-one"}), "invalid_api_key")
    assert (await lab.post(CHAT, headers={"authorization": "Bearer sk-two"})).status_code == 200


async def test_tenants_of_isolated_models_have_salts_that_nobody_else_can_make(lab: Lab) -> None:
    model = orders.model("m", ["a"])
    model.isolate_cache = True
    replicas, keys = await lab.add_replicas("a", 1), [key("one", "sk-one"), key("two", "sk-two")]
    received = lab.replicas["a-0.g1"].received

    async def salts() -> list[str]:
        found = []
        for secret in ("sk-one", "sk-two", ""):
            sent = {"authorization": f"Bearer {secret}", "x-slipstream-salt": "0" * 40} if secret else {}
            assert (await lab.post(CHAT, headers=sent)).status_code == 200
            found.append(received[-1].headers.get("x-slipstream-salt", ""))
        return found

    async def settled(expected: list[str]) -> None:
        """Old workers' connections take one more request each."""
        async with asyncio.timeout(10):
            while await salts() != expected:
                await asyncio.sleep(0.01)

    await lab.apply([model], replicas, keys=keys)
    one, two, none = await salts()
    assert SALT.fullmatch(one.encode()) and SALT.fullmatch(two.encode()) and one != two and none == ""
    path = lab.state.gateway / "salt.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert hmac.new(path.read_bytes(), b"cache salt\0t-one", hashlib.sha256).hexdigest()[:40] == one
    model.isolate_cache = False
    await lab.apply([model], replicas, keys=keys)
    await settled(["", "", ""])
    model.isolate_cache = True
    await lab.apply([model], replicas, keys=keys)
    await settled([one, two, ""])


async def test_tls_offers_h2(lab: Lab) -> None:
    pem = lab.state.root / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", "-", "-out", "-"], capture_output=True, check=True,
    )  # fmt: skip
    pem.write_bytes(made.stdout)
    tls_port = ports.lease()[0]
    listeners = [
        gateway_pb2.Listener(host="127.0.0.1", port=lab.port),
        gateway_pb2.Listener(host="127.0.0.1", port=tls_port, certificate=str(pem)),
    ]
    await one_model(lab, 1, listeners=listeners)
    context = ssl.create_default_context(cafile=str(pem))
    context.check_hostname = False
    for offered in (["h2", "http/1.1"], ["http/1.1"]):
        context.set_alpn_protocols(offered)
        _, writer = await asyncio.open_connection("127.0.0.1", tls_port, ssl=context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == offered[0]
        writer.close()
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sk", "--http2", "-w", "%{http_version}", "-d", json.dumps(CHAT),
        f"https://127.0.0.1:{tls_port}/v1/chat/completions", stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await curl.communicate()
    assert output.endswith(b"}2") and b'"replica"' in output


async def test_refused_connections_are_tried_elsewhere(lab: Lab) -> None:
    replicas = await one_model(lab, 4)
    for index in range(limits.RETRIES):  # as many may refuse
        await lab.replicas[f"a-{index}.g1"].stop()
    lab.decide = lambda message, question: {"pool": "a", "srv": "a-0.g1"}
    await lab.router.start()
    answers = await asyncio.gather(*(lab.post(CHAT) for _ in range(20)))
    assert {answer.json()["replica"] for answer in answers} <= {"a-2.g1", "a-3.g1"}
    assert len(replicas) == 4


BUFFERS = (limits.SHORT_BUFFER_BYTES, limits.LONG_BUFFER_BYTES)


@pytest.mark.parametrize("buffer_bytes", BUFFERS)
async def test_a_crash_before_the_first_byte_is_replayed(lab: Lab, buffer_bytes: int) -> None:
    await one_model(lab, 4, buffer_bytes=buffer_bytes)
    victim = lab.replicas["a-0.g1"]
    lab.decide = lambda message, question: {"pool": "a", "srv": "a-0.g1"}
    await lab.router_up()
    body = spaced(100_000)
    for _ in range(3):  # the client's connection is kept alive from here on, and so is one to the victim
        assert (await lab.post(content=body)).json()["replica"] == "a-0.g1"
        victim.crash_next = 1
        replayed = await lab.post(content=body)
        assert replayed.status_code == 200 and replayed.json()["bytes"] == len(body)
        assert replayed.json()["replica"] != "a-0.g1"
    async with httpx2.AsyncClient(base_url=lab.url) as fresh:
        victim.crash_next = 1
        assert (await fresh.post("/v1/chat/completions", content=body)).status_code == 200
    for replica in lab.replicas.values():
        replica.crash_next = 9
        replica.received.clear()
    check_error(await lab.post(CHAT), "replica_failed")
    assert sum(len(replica.received) for replica in lab.replicas.values()) == 1 + limits.RETRIES


@pytest.mark.parametrize("buffer_bytes", BUFFERS)
async def test_a_killed_replica_fails_no_request_before_its_first_byte(lab: Lab, buffer_bytes: int) -> None:
    await one_model(lab, 3, buffer_bytes=buffer_bytes)
    turn = itertools.cycle(range(3))
    lab.decide = lambda message, question: {"pool": "a", "srv": f"a-{next(turn)}.g1"}
    await lab.router_up()
    results: list[int] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            results.append((await lab.post(CHAT)).status_code)

    loaders = [asyncio.create_task(load()) for _ in range(8)]
    for name in ("a-0.g1", "a-1.g1"):
        done = len(results)
        await until(lambda: len(results) >= done + 100, "load")  # noqa: B023
        await lab.replicas[name].stop()
    await until(lambda: len(results) >= done + 300, "load")
    stop.set()
    await asyncio.gather(*loaders)
    assert set(results) == {200}


async def stream(lab: Lab, events: int, gap_ms: int) -> bool:
    headers = {"x-events": str(events), "x-gap-ms": str(gap_ms)}
    got = await lab.post(CHAT, headers=headers)
    lines = [line for line in got.text.splitlines() if line]
    return lines == [f"data: {n}" for n in range(events)] + ["data: [DONE]"]


async def test_servers_change_under_streams_without_a_reload(lab: Lab) -> None:
    first = await one_model(lab, 2)
    models = [orders.model("m", ["a"], ["lora"])]
    worker = await runtime.process_id(lab.state.haproxy_socket)
    streams = [asyncio.create_task(stream(lab, 60, 20)) for _ in range(6)]
    await until(lambda: sum(len(r.received) for r in lab.replicas.values()) == 6, "streams")
    more = await lab.add_replicas("a", 1, first=2)
    first[0].state = orders.DRAINING
    await lab.apply(models, [*first, *more], number=2)
    assert {(await lab.post(CHAT)).json()["replica"] for _ in range(6)} <= {"a-1.g1", "a-2.g1"}
    await lab.apply(models, [first[1], *more], number=3)
    first[0].state = orders.READY
    assert all(await asyncio.gather(*streams))
    assert await runtime.process_id(lab.state.haproxy_socket) == worker
    stats = {entry.server: entry for entry in await lab.gateway.stats()}
    assert stats["a-2.g1"].pool == "a" and stats["a-1.g1"].total_streams >= 1
    assert (lab.gateway.error, lab.gateway.topology_number) == ("", 3)


async def test_a_reload_under_load_loses_nothing(lab: Lab) -> None:
    replicas = await one_model(lab, 2)
    streams = [asyncio.create_task(stream(lab, 40, 25)) for _ in range(4)]
    stop = asyncio.Event()
    results: list[int] = []

    async def load() -> None:
        while not stop.is_set():
            results.append((await lab.post(CHAT)).status_code)

    loaders = [asyncio.create_task(load()) for _ in range(4)]
    for number in range(2, 5):
        worker = await runtime.process_id(lab.state.haproxy_socket)
        models = [orders.model("m", ["a"], [f"lora{number}"])]
        await lab.apply(models, replicas, number=number)
        assert await runtime.process_id(lab.state.haproxy_socket) != worker
    stop.set()
    await asyncio.gather(*loaders)
    assert set(results) == {200} and all(await asyncio.gather(*streams))
    # A kept-alive connection may still get one answer of the old worker.
    assert b" 200 " in await raw(lab.port, b"GET /v1/models/lora4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


async def test_a_lost_server_stays_out_over_a_reload(lab: Lab) -> None:
    replicas = await one_model(lab, 2)
    await lab.gateway.set_maintenance(["a-0.g1"])
    assert {(await lab.post(CHAT)).json()["replica"] for _ in range(4)} == {"a-1.g1"}
    await lab.apply([orders.model("m", ["a"], ["other"])], replicas, number=2)
    assert {(await lab.post(CHAT)).json()["replica"] for _ in range(4)} == {"a-1.g1"}


async def test_a_lost_server_does_not_wait_for_a_change(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = await one_model(lab, 3)
    reloading, go_on = asyncio.Event(), asyncio.Event()
    reload = runtime.reload

    async def slow_reload(master: Path) -> None:
        reloading.set()
        await go_on.wait()
        await reload(master)

    monkeypatch.setattr(runtime, "reload", slow_reload)
    change = asyncio.create_task(lab.apply([orders.model("m", ["a"], ["other"])], replicas, number=2))
    await reloading.wait()
    await lab.gateway.set_maintenance(["a-0.g1"])
    assert {(await lab.post(CHAT)).json()["replica"] for _ in range(6)} == {"a-1.g1", "a-2.g1"}
    go_on.set()
    await change
    assert {(await lab.post(CHAT)).json()["replica"] for _ in range(6)} == {"a-1.g1", "a-2.g1"}
    states = await runtime.server_states(lab.state.haproxy_socket)
    assert [states["a", f"a-{n}.g1"].in_maintenance for n in range(3)] == [True, False, False]


async def test_what_cannot_be_applied_changes_nothing(lab: Lab) -> None:
    replicas = await one_model(lab, 1)
    models = [orders.model("m", ["a"])]
    before = (lab.state.gateway / "current").readlink()
    missing = [gateway_pb2.Listener(host="127.0.0.1", port=lab.port, certificate="/nowhere/cert.pem")]
    for _ in range(2):
        with pytest.raises(CheckFailed) as failed:
            await lab.apply(models, replicas, number=2, listeners=missing)
        assert str(failed.value).startswith("config : parsing [haproxy.cfg:"), failed.value
    taken = lab.replicas["a-0.g1"].port
    both = [gateway_pb2.Listener(host="127.0.0.1", port=p) for p in (lab.port, taken)]
    with pytest.raises(DataplaneError, match="rolled back"):
        await lab.apply(models, replicas, number=3, listeners=both)
    assert "rolled back" in lab.gateway.error and lab.gateway.topology_number == 1
    assert (lab.state.gateway / "current").readlink() == before
    assert (await lab.post(CHAT)).status_code == 200
    await lab.apply(models, replicas, number=4)
    assert lab.gateway.error == "" and (await lab.post(CHAT)).status_code == 200


async def test_another_agent_takes_over(lab: Lab) -> None:
    replicas = await one_model(lab, 1)
    pid = lab.gateway.pid
    heir = Gateway(lab.state, lab.launcher)
    assert await heir.adopt()
    await heir.apply(orders.order(lab.port, [orders.model("m", ["a"], ["lora"])], replicas, number=2))
    assert heir.pid == pid and (await lab.post(CHAT)).status_code == 200


async def test_every_socket_is_for_the_owner_only(lab: Lab) -> None:
    await one_model(lab, 1)
    for path in (lab.state.haproxy_socket, lab.state.haproxy_master_socket):
        assert path.stat().st_mode & 0o777 == 0o600


async def test_no_server_is_a_json_503(lab: Lab) -> None:
    await lab.apply([orders.model("m", ["a"])], [])
    check_error(await lab.post(CHAT), "no_replica_available")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_malformed_http_is_refused(lab: Lab, request_bytes: bytes) -> None:
    await lab.start_log()
    await one_model(lab, 1)
    assert b" 400 " in (await raw(lab.port, request_bytes)).split(b"\r\n")[0]
    assert (await lab.post(CHAT, "/nowhere")).status_code == 404
    assert not [line for line in lab.log if line.startswith("R")]
    assert lab.replicas["a-0.g1"].received == []
