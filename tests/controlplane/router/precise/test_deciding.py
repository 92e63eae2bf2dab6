"""Questions that are answered later, and those that are not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from controlplane.router.deferred import Deferred
from controlplane.router.precise.deciding import MORE, PreciseDecisions
from controlplane.router.precise.matching import Matching, Prompt
from controlplane.router.questions import Options, Question, Whole
from controlplane.routing.fleet import ModelInfo, PoolInfo, Topology
from controlplane.routing.record import KIND_NUMBERS, WHOLE_BODY, Request

MODEL = ModelInfo("tiny", (), (PoolInfo("tiny", "mixed"),), precise=True, deadline_s=10.0)
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 999}]}).encode()


def asked(model: bytes = b"tiny", size: int = len(BODY), flags: int = WHOLE_BODY) -> Request:
    return Request(True, KIND_NUMBERS["chat"], flags, model, b"", b"", b"", size, size, 0, b"", "", "")


def whole(body: bytes = BODY) -> Whole:
    return Whole(b"ids", b"request", 1, b"", len(body), Options(b"", (), b"", 0), body)


def question(body: bytes | None) -> Question:
    return Question(b"ids", b"request", b"", b"", body, 0)


class Connection:
    def __init__(self) -> None:
        self.deferred: set[Deferred] = set()
        self.sent: list[tuple[bytes, bytes]] = []

    def send_answer(self, ids: bytes, payload: bytes) -> None:
        self.sent.append((ids, payload))


class Fixture:
    def __init__(self) -> None:
        self.matching = Matching(lambda tenant: "")
        self.matching.install(Topology(1, "test", (MODEL,), ()))
        self.decided: list[Prompt | None] = []
        self.decisions = PreciseDecisions(self.matching, self.decide)

    def decide(self, request_id: bytes, request: Request, priority: int, prompt: Prompt | None) -> tuple[bytes, bytes]:
        self.decided.append(prompt)
        return b"payload of " + request_id, b"tiny-0.g1"

    async def ready(self) -> None:
        async with asyncio.timeout(10):
            while not all(tokenizer for _, tokenizer, _ in self.matching.models()):
                await asyncio.sleep(0.01)


async def test_a_question_is_answered_when_its_tokens_are_there() -> None:
    made, connection = Fixture(), Connection()
    await made.ready()
    deferred = made.decisions.answer(whole(), asked(), 1)
    assert isinstance(deferred, Deferred)
    deferred.bind(connection, b"ids")
    async with asyncio.timeout(10):
        while not connection.sent:
            await asyncio.sleep(0.001)
    assert connection.sent == [(b"ids", b"payload of request")]
    assert made.decided[0] is not None and not connection.deferred
    again = await made.matching.prompt(b"tiny", 1, b"", BODY)
    assert again is not None and again.held == {b"tiny-0.g1": len(again.tokens)}  # it was sent there
    await made.matching.close()


async def test_nothing_is_decided_for_a_connection_that_is_gone() -> None:
    made, connection = Fixture(), Connection()
    await made.ready()
    deferred = made.decisions.answer(whole(), asked(), 1)
    assert isinstance(deferred, Deferred)
    deferred.bind(connection, b"ids")
    deferred.lost()
    assert await made.matching.prompt(b"tiny", 1, b"", BODY) is not None  # tokenised after it
    assert made.decided == [] and connection.sent == []
    await made.matching.close()


async def test_what_is_asked_for_and_what_goes_by_its_text() -> None:
    made = Fixture()
    await made.ready()
    answer = made.decisions.answer
    assert answer(question(None), asked(), 1) == MORE
    assert answer(question(None), asked(flags=0), 1) is None  # HAProxy has not all of it
    assert answer(question(None), asked(size=2_000_000), 1) is None  # a message does not carry it
    assert answer(question(BODY[:-9]), asked(), 1) is None
    assert answer(whole(), asked(b"other"), 1) is None
    await made.matching.close()


async def test_nothing_waits_for_a_tokenizer_that_is_not_there_yet() -> None:
    made = Fixture()
    assert made.decisions.answer(whole(), asked(), 1) is None
    assert made.matching.counters.fallbacks == {"no_tokenizer": 1}
    await made.ready()
    await made.matching.close()


def test_a_router_without_precise_models_loads_none_of_it() -> None:
    code = "import sys, controlplane.router.process, controlplane.router.grpc_side; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"zmq", "jinja2", "tokenizers"} & set(loaded.stdout.split())
