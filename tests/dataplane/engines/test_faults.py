"""Fault switches, clients that leave, and the way a replica stops."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.dataplane.engines.replicas import Running, replica

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
LONG = {**CHAT, "max_tokens": 2000, "stream": True}
HEALTHY = {
    "ttft_delay_s": 0,
    "token_delay_s": 0,
    "fail_next": 0,
    "hang": False,
    "abort_after_tokens": 0,
    "unhealthy": False,
}


@pytest.fixture
def faulty(server: Running) -> Iterator[Running]:
    yield server
    assert server.post("/simulated/faults", HEALTHY).status_code == 200


def test_fail_next(faulty: Running) -> None:
    faulty.post("/simulated/faults", {"fail_next": 2, "fail_status": 503})
    statuses = [faulty.post("/v1/chat/completions", CHAT).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]


def test_unhealthy(faulty: Running) -> None:
    faulty.post("/simulated/faults", {"unhealthy": True})
    assert faulty.client.get("/health").status_code == 503
    assert faulty.post("/v1/chat/completions", CHAT).status_code == 200


def test_hang_stops_tokens_but_not_health(faulty: Running) -> None:
    faulty.post("/simulated/faults", {"hang": True})
    with pytest.raises(httpx2.ReadTimeout):
        faulty.client.post("/v1/chat/completions", json=CHAT, timeout=0.3)
    assert faulty.client.get("/health").status_code == 200
    faulty.post("/simulated/faults", {"hang": False})
    assert faulty.post("/v1/chat/completions", CHAT).status_code == 200


def test_delays(faulty: Running) -> None:
    faulty.post("/simulated/faults", {"ttft_delay_s": 0.3, "token_delay_s": 0.05})
    answer = faulty.post("/v1/chat/completions", CHAT)
    assert answer.elapsed.total_seconds() >= 0.3 + 8 * 0.05


def test_a_cut_stream_has_no_end(faulty: Running) -> None:
    faulty.post("/simulated/faults", {"abort_after_tokens": 5})
    with (
        pytest.raises(httpx2.RemoteProtocolError),
        faulty.client.stream("POST", "/v1/chat/completions", json=LONG) as answer,
    ):
        for _ in answer.iter_bytes():
            pass


def test_wrong_switches_are_refused(faulty: Running) -> None:
    for wrong in ({"nope": 1}, {"hang": "yes"}, {"fail_next": -1}, {"fail_status": 200}, {"ttft_delay_s": 1e9}):
        assert faulty.post("/simulated/faults", wrong).status_code == 400, wrong
    assert faulty.client.get("/simulated/faults").json()["hang"] is False


def test_a_client_that_leaves_frees_its_blocks(faulty: Running) -> None:
    server = faulty
    server.post("/simulated/faults", {"token_delay_s": 0.05})
    with server.client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
        chunks = answer.iter_bytes()
        next(chunks)
        assert server.metric("vllm:num_requests_running") == 1
        assert server.metric("vllm:kv_cache_usage_perc") > 0
    server.wait_for("vllm:num_requests_running", 0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.metric("vllm:request_success_total", 'finished_reason="abort"') >= 1


def test_switches_are_off_unless_asked_for() -> None:
    with replica(fault_switches=False) as running:
        assert running.post("/simulated/faults", {"crash": True}).status_code == 404


def test_crash() -> None:
    with replica() as running:
        with pytest.raises(httpx2.TransportError):
            running.post("/simulated/faults", {"crash": True})
        assert running.process.wait(10) == -signal.SIGKILL


def test_sigterm_lets_streams_end_and_takes_new_requests_meanwhile() -> None:
    with replica(step_base_ms=5) as running:
        with running.client.stream("POST", "/v1/chat/completions", json={**LONG, "max_tokens": 400}) as answer:
            chunks = answer.iter_bytes()
            text = next(chunks)
            running.process.send_signal(signal.SIGTERM)
            assert httpx2.post(f"{running.url}/v1/chat/completions", json=CHAT).status_code == 200
            text += b"".join(chunks)
        assert text.endswith(b"data: [DONE]\n\n")
        assert running.process.wait(10) == 0


def test_sigterm_cuts_streams_when_the_time_is_over() -> None:
    with replica(step_base_ms=20, shutdown_timeout_s=0.2) as running:
        with (
            pytest.raises(httpx2.RemoteProtocolError),
            running.client.stream("POST", "/v1/chat/completions", json=LONG) as answer,
        ):
            running.process.send_signal(signal.SIGTERM)
            for _ in answer.iter_bytes():
                pass
        assert running.process.wait(10) == 0


def _headers_after(running: Running, wait_s: float) -> bytes:
    """Return what came within ``wait_s`` of a streamed request."""
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":2}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connection.settimeout(wait_s)
        try:
            return connection.recv(65536)
        except TimeoutError:
            return b""


def test_headers_come_first_without_the_middleware_and_with_the_first_token_with_it() -> None:
    with replica(middleware=False) as running:
        running.post("/simulated/faults", {"hang": True})
        assert _headers_after(running, 5).startswith(b"HTTP/1.1 200")
    with replica() as running:
        running.post("/simulated/faults", {"hang": True})
        assert _headers_after(running, 0.5) == b""
        running.post("/simulated/faults", {"hang": False})
        assert _headers_after(running, 5).startswith(b"HTTP/1.1 200")
