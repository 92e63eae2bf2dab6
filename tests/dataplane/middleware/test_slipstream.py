"""The middleware, driven message by message."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from dataplane.middleware import SlipstreamMiddleware
from dataplane.middleware.asgi import Message, Receive, Scope, Send
from dataplane.middleware.held_start import MAX_PRELUDE_BYTES

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
CREATED = b'event: response.created\ndata: {"response":{"background":false}}\n\n'


def body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def scope(path: str = "/v1/chat/completions", method: str = "POST", kind: str = "http") -> Scope:
    return {"type": kind, "method": method, "path": path, "headers": [(b"content-length", b"2")]}


async def never() -> Message:
    return await asyncio.Future()


class Probe:
    """An application that sends given messages, and the server's side that notes what arrives after each."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.arrived: list[Message] = []
        self.after_each: list[int] = []
        self.seen_send: list[object] = []

    async def app(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self.seen_send.append(send)
        for message in self.messages:
            await send(message)
            self.after_each.append(len(self.arrived))

    async def send(self, message: Message) -> None:
        self.arrived.append(message)

    async def run(self, at: Scope) -> None:
        await SlipstreamMiddleware(self.app)(at, never, self.send)


async def test_the_start_waits_for_the_first_token() -> None:
    probe = Probe(START, body(b""), body(b"a"), body(b"b"), body(b"", more=False))
    await probe.run(scope())
    assert probe.after_each == [0, 0, 3, 4, 5]
    assert probe.arrived == list(probe.messages)


async def test_an_empty_answer_is_sent_at_its_end() -> None:
    probe = Probe(START, body(b"", more=False))
    await probe.run(scope())
    assert probe.arrived == list(probe.messages)


async def test_other_messages_end_the_wait() -> None:
    probe = Probe(START, {"type": "http.response.pathsend", "path": "/x"})
    await probe.run(scope())
    assert probe.arrived == list(probe.messages)


async def test_the_events_before_the_first_token_of_a_response_wait_too() -> None:
    probe = Probe(START, body(CREATED), body(CREATED), body(b"event: response.output_item.added\n"))
    await probe.run(scope("/v1/responses"))
    assert probe.after_each == [0, 0, 0, 4]


async def test_they_do_not_in_the_background_or_elsewhere_or_when_they_are_large() -> None:
    probe = Probe(START, body(CREATED.replace(b"false", b"true")))
    await probe.run(scope("/v1/responses"))
    assert probe.after_each == [0, 2]
    probe = Probe(START, body(CREATED))
    await probe.run(scope())
    assert probe.after_each == [0, 2]
    probe = Probe(START, body(CREATED + b"x" * MAX_PRELUDE_BYTES))
    await probe.run(scope("/v1/responses"))
    assert probe.after_each == [0, 2]


@pytest.mark.parametrize("at", [scope("/health", "GET"), scope(kind="websocket"), scope(kind="lifespan")])
async def test_all_else_is_left_alone(at: Scope) -> None:
    probe = Probe(START)
    if at["type"] == "lifespan":
        del at["method"]
    await probe.run(at)
    assert probe.seen_send == [probe.send]
    assert probe.arrived == [START]


async def test_an_error_while_held_leaves_the_server_free_to_answer() -> None:
    async def fails(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        raise RuntimeError("broken")

    arrived: list[Message] = []

    async def send(message: Message) -> None:
        arrived.append(message)

    with pytest.raises(RuntimeError):
        await SlipstreamMiddleware(fails)(scope(), never, send)
    assert arrived == []


async def _echo_request(
    at: Scope, parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> tuple[Scope, bytes, list[Message]]:
    """Return what an application sees of a request, and what is answered when it raises nothing."""
    monkeypatch.setenv("SLIPSTREAM_PIN", "0123abcd")
    queue = [{"type": "http.request", "body": p, "more_body": True} for p in parts]
    queue.append({"type": "http.request", "body": b"", "more_body": False})
    queue.append({"type": "http.disconnect"})
    seen: dict[str, Any] = {}

    async def receive() -> Message:
        return queue.pop(0)

    async def app(inner: Scope, receive: Receive, _send: Send) -> None:
        data = b""
        while (message := await receive())["type"] == "http.request":
            data += message["body"]
        seen.update(scope=inner, body=data)

    arrived: list[Message] = []

    async def send(message: Message) -> None:
        arrived.append(message)

    await SlipstreamMiddleware(app)(at, receive, send)
    return seen.get("scope", {}), seen.get("body", b""), arrived


async def test_responses_get_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    at = {**scope("/v1/responses"), "headers": [(b"content-length", b"21")]}
    inner, data, _ = await _echo_request(at, [b'{"request_id"', b':"mine"}'], monkeypatch)
    assert json.loads(data)["request_id"].startswith("resp_0123abcd_")
    assert dict(inner["headers"])[b"content-length"] == b"%d" % len(data)
    assert at["headers"] == [(b"content-length", b"21")]


async def test_chat_bodies_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    at = scope()
    inner, data, _ = await _echo_request(at, [b"{", b"}"], monkeypatch)
    assert inner is at
    assert data == b"{}"


def test_a_wrong_pin_stops_the_engine_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_PIN", "0123abcd\n")
    with pytest.raises(ValueError, match="SLIPSTREAM_PIN"):
        SlipstreamMiddleware(Probe().app)


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; import dataplane.middleware; print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {m for m in found if not m.startswith("__editable__")} <= set(sys.stdlib_module_names) | {
        "dataplane"
    } | _site()


def _site() -> set[str]:
    """Return the modules that this interpreter loads before anything is imported."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in found.stdout.split()}
