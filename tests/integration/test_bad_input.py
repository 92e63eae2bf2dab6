"""What a client may send wrongly, and the OpenAI-shaped answer to each, with the router up."""

from __future__ import annotations

import json
import socket

import httpx2
import pytest

from tests.integration.cluster import Cluster

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
MIB = 1024 * 1024

#: name, method, path, body, status, stable code
CASES: list[tuple[str, str, str, bytes, int, str]] = [
    ("malformed", "POST", CHAT, b'{"model": "alpha", "messages": [', 400, "invalid_json"),
    ("not JSON at all", "POST", CHAT, b"hello", 400, "invalid_json"),
    ("an array", "POST", CHAT, b"[1, 2]", 400, "invalid_body"),
    ("a string", "POST", CHAT, b'"alpha"', 400, "invalid_body"),
    ("empty", "POST", CHAT, b"", 400, "empty_body"),
    ("no model", "POST", CHAT, json.dumps({"messages": MESSAGES}).encode(), 400, "model_required"),
    ("null model", "POST", CHAT, json.dumps({"model": None, "messages": MESSAGES}).encode(), 400, "model_required"),
    ("number model", "POST", CHAT, json.dumps({"model": 7, "messages": MESSAGES}).encode(), 400, "invalid_model"),
    (
        "unknown model",
        "POST",
        CHAT,
        json.dumps({"model": "gpt", "messages": MESSAGES}).encode(),
        404,
        "model_not_found",
    ),
    (
        "unknown model last",
        "POST",
        CHAT,
        json.dumps({"messages": MESSAGES, "model": "x"}).encode(),
        404,
        "model_not_found",
    ),
    ("wrong method", "GET", CHAT, b"", 405, "method_not_allowed"),
    ("delete", "DELETE", "/v1/models", b"", 405, "method_not_allowed"),
    ("unknown path", "GET", "/", b"", 404, "path_not_found"),
    ("engine's metrics", "GET", "/metrics", b"", 404, "path_not_found"),
    ("engine's pause", "POST", "/pause", b"{}", 404, "path_not_found"),
    ("engine's sleep", "POST", "/sleep", b"{}", 404, "path_not_found"),
    ("engine's weights", "POST", "/update_weights", b"{}", 404, "path_not_found"),
    ("over the limit", "POST", CHAT, b'{"model":"alpha","x":"' + b"a" * (33 * MIB) + b'"}', 413, "body_too_large"),
    ("20 MB, no model", "POST", CHAT, b'{"x":"' + b"a" * (20 * MIB) + b'"}', 400, "model_not_visible"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_bad_input_gets_a_coded_error(
    two_models: Cluster, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    with httpx2.Client(base_url=two_models.url, trust_env=False, timeout=30) as http:
        answer = http.request(method, path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-slipstream-request-id"]


@pytest.mark.parametrize(
    "target", ["/v1/../metrics", "/v1/%2e%2e/metrics", "//metrics", "/v1/chat/completions/../../../metrics"]
)
def test_dot_segments_do_not_pass(two_models: Cluster, target: str) -> None:
    assert _raw(two_models, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] in (400, 404)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND"])
def test_odd_methods_do_not_pass(two_models: Cluster, method: str) -> None:
    status, text = _raw(two_models, f"{method} {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status in (400, 404, 405)
    if method != "CONNECT":  # HAProxy's parser refuses a CONNECT to a path with a page of its own
        assert "<html" not in text.lower()


def test_a_20_mb_body_whose_model_comes_first_is_routed(two_models: Cluster) -> None:
    body = {"model": "beta", "messages": [{"role": "user", "content": "x " * (10 * MIB)}], "max_tokens": 1}
    with httpx2.Client(base_url=two_models.url, trust_env=False, timeout=60) as http:
        answer = http.post(CHAT, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert answer.headers["x-slipstream-replica"].startswith("beta-")  # the engine itself refuses so long a prompt
    assert answer.status_code in (200, 400)


def test_the_model_may_come_in_a_header(two_models: Cluster) -> None:
    body = (
        b'{"x":"' + b"a" * (2 * MIB) + b'","messages":[{"role":"user","content":"hi"}],"max_tokens":1,"model":"beta"}'
    )
    headers = {"content-type": "application/json", "x-slipstream-model": "beta"}
    with httpx2.Client(base_url=two_models.url, trust_env=False, timeout=30) as http:
        answer = http.post(CHAT, content=body, headers=headers)
    assert answer.headers["x-slipstream-replica"].startswith("beta-")


def test_a_nested_model_is_never_taken_for_the_requests_own(two_models: Cluster) -> None:
    body = {
        "metadata": {"model": "beta"},
        "messages": [{"role": "user", "content": 'say {"model": "beta"}'}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"model": "beta"}}}],
        "model": "alpha",
        "max_tokens": 1,
    }
    with httpx2.Client(base_url=two_models.url, trust_env=False, timeout=30) as http:
        for order in (body, dict(reversed(body.items()))):
            answer = http.post(CHAT, json=order)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-slipstream-replica"].startswith("alpha-")


def _raw(cluster: Cluster, request: str) -> tuple[int, str]:
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=10) as connection:
        connection.sendall(request.encode())
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    text = data.decode(errors="replace")
    return int(text.split(" ", 2)[1]), text
