"""From a request's body to what real replicas cache of it, by the deadline or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from controlplane.router.precise import agreement
from controlplane.router.precise.conversation import Unsupported
from controlplane.router.precise.matching import Matching, Prompt
from controlplane.router.precise.recent import TTL_S, Recent
from controlplane.routing.fleet import READY, AdapterInfo, ModelInfo, PoolInfo, ReplicaInfo, Topology
from controlplane.routing.record import KIND_NUMBERS
from tests.dataplane.engines.replicas import Running, replica
from tests.ports import lease

DEADLINE_S = 15.0
CHAT = KIND_NUMBERS["chat"]
MODEL = ModelInfo("tiny", (AdapterInfo("tiny-lora"),), (PoolInfo("tiny", "mixed"),), precise=True)


def chat(text: str, **more: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}
    return json.dumps(body).encode()


class World:
    def __init__(self, deadline_s: float) -> None:
        self.matching = Matching(lambda tenant: f"salt of {tenant.decode()}")
        self.prefix = f"ipc://@slipstream-test-{lease()[0]}"
        self.model = replace(MODEL, deadline_s=deadline_s)

    def settings(self, number: int, generation: int = 1) -> dict[str, Any]:
        return {
            "kv_events_endpoint": f"{self.prefix}-{number}-e",
            "kv_replay_endpoint": f"{self.prefix}-{number}-r",
            "kv_events_topic": f"tiny-{number}.g{generation}",
        }

    def info(self, number: int, generation: int = 1) -> ReplicaInfo:
        settings = self.settings(number, generation)
        return ReplicaInfo(
            server=settings["kv_events_topic"],
            name=f"tiny-{number}",
            model="tiny",
            pool="tiny",
            host="127.0.0.1",
            port=1,
            state=READY,
            role="mixed",
            kv_block_tokens=16,
            kv_capacity_tokens=65536,
            kv_events_endpoint=settings["kv_events_endpoint"],
            kv_replay_endpoint=settings["kv_replay_endpoint"],
        )

    async def install(self, *replicas: ReplicaInfo) -> None:
        self.matching.install(Topology(1, "test", (self.model,), replicas))
        await self.until(lambda: self.matching._models["tiny"].tokenizer is not None)

    async def until(self, accept: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not accept():
                await asyncio.sleep(0.01)

    async def match(
        self, body: bytes, name: bytes = b"tiny", kind: int = CHAT, tenant: bytes = b"acme"
    ) -> Prompt | None:
        async with asyncio.timeout(DEADLINE_S):
            return await self.matching.prompt(name, kind, tenant, body)

    async def holds(
        self, body: bytes, expected: dict[bytes, int], name: bytes = b"tiny", tenant: bytes = b"acme"
    ) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                prompt = await self.match(body, name, tenant=tenant)
                if prompt is not None and prompt.held == expected:
                    return
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def world(deadline_s: float = DEADLINE_S) -> AsyncIterator[World]:
    made = World(deadline_s)
    task = asyncio.create_task(made.matching.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await made.matching.close()


async def post(running: Running, body: bytes, **more: Any) -> None:
    answer = await asyncio.to_thread(running.post, "/v1/chat/completions", json.loads(body) | more)
    answer.raise_for_status()


async def test_what_each_replica_caches_of_a_prompt() -> None:
    async with world() as here:
        with replica(**here.settings(0)) as first, replica(**here.settings(1)) as second:
            await here.install(here.info(0), here.info(1))
            long, beginning = chat("one two three four " * 60), chat("one two three four " * 30)
            await post(first, beginning)
            await post(second, long)
            await here.holds(long, {b"tiny-1.g1": 288, b"tiny-0.g1": 144})
            await here.holds(chat("something else " * 40), {})
            await here.holds(long, {}, b"tiny-lora")
            await post(first, long, model="tiny-lora")
            await here.holds(long, {b"tiny-0.g1": 288}, b"tiny-lora")
            here.matching.install(Topology(2, "test", (here.model,), (here.info(0),)))
            await here.holds(long, {b"tiny-0.g1": 144})


async def test_a_prompt_counts_as_cached_where_it_was_just_sent() -> None:
    async with world() as here:
        await here.install(here.info(0))
        prompt = await here.match(chat("a long beginning " * 40))
        assert prompt is not None and not prompt.held
        prompt.sent(b"tiny-0.g1")
        again = await here.match(chat("a long beginning " * 40 + "and another end"))
        assert again is not None and again.held is not None
        assert again.held[b"tiny-0.g1"] >= 160


def test_it_counts_no_longer_than_until_the_engine_tells() -> None:
    recent, tokens = Recent(), array("I", range(200))
    recent.add(b"a", ("", ""), tokens, 10.0)
    recent.add(b"b", ("lora", ""), tokens, 10.0)
    held = {b"c": 90}
    recent.raise_to(held, ("", ""), tokens[:150], 10.0 + TTL_S / 2)
    assert list(held.items()) == [(b"a", 150), (b"c", 90)]
    held = {b"a": 200}
    recent.raise_to(held, ("", ""), tokens[:150], 10.0)
    assert held == {b"a": 200}
    held = {}
    recent.raise_to(held, ("", ""), tokens, 10.0 + TTL_S)
    assert held == {}


@pytest.mark.parametrize(
    ("body", "name", "kind", "reason"),
    [
        (b"{", b"tiny", CHAT, "malformed"),
        (b"[]", b"tiny", CHAT, "malformed"),
        (chat("x", messages=[7]), b"tiny", CHAT, "malformed"),
        (chat("x", truncate_prompt_tokens=5), b"tiny", CHAT, "truncate_prompt_tokens"),
        (chat("x"), b"other", CHAT, "model"),
        (chat("x"), b"tiny", KIND_NUMBERS["messages"], "kind"),
        (b'{"prompt": ["a", "b"]}', b"tiny", KIND_NUMBERS["completions"], "several_prompts"),
        (b'{"prompt": [1, -1]}', b"tiny", KIND_NUMBERS["completions"], "malformed"),
    ],
)
async def test_what_cannot_be_matched_goes_by_its_text(body: bytes, name: bytes, kind: int, reason: str) -> None:
    async with world() as here:
        await here.install(here.info(0))
        assert await here.match(body, name, kind) is None
        assert here.matching.counters.fallbacks == {reason: 1}


class Slow:
    """Tokenises when it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def tokens(self, kind: int, asked: Mapping[str, Any]) -> array[int]:
        self.let.wait(DEADLINE_S)
        if "fail" in asked:
            raise RuntimeError("a prompt")
        if "refuse" in asked:
            raise Unsupported("media")
        return array("I", [1])


async def test_what_is_late_or_too_much_goes_by_its_text() -> None:
    async with world(0.02) as here:
        await here.install()
        slow = here.matching._models["tiny"].tokenizer = Slow()
        answers = [asyncio.create_task(here.match(b"{}")) for _ in range(66)]
        assert await asyncio.gather(*answers) == [None] * 66
        assert here.matching.counters.fallbacks == {"late": 64, "busy": 2}
        slow.let.set()
        await here.until(lambda: not here.matching._waiting)
        assert here.matching.counters.tokenised == 64
        prompt = await here.match(b"{}")
        assert prompt is not None and not prompt.held


async def test_a_tokenizer_that_fails_harms_one_request_only(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as here:
        await here.install()
        slow = here.matching._models["tiny"].tokenizer = Slow()
        slow.let.set()
        assert await here.match(b'{"fail": 1}') is None
        assert await here.match(b'{"refuse": 1}') is None
        assert await here.match(b"{}") is not None
        assert here.matching.counters.fallbacks == {"error": 1, "media": 1}
        assert "a prompt could not be tokenised: RuntimeError" in caplog.text


async def test_a_folder_without_a_tokenizer_leaves_the_model_to_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as here:
        broken = replace(here.model, tokenizer="/nowhere")
        here.matching.install(Topology(1, "test", (broken,), (here.info(0),)))
        await here.until(lambda: "is routed by text" in caplog.text)
        assert await here.match(chat("x")) is None
        assert here.matching.counters.fallbacks == {"no_tokenizer": 1}


async def test_tenants_and_salts_keep_prompts_apart() -> None:
    async with world() as here:
        with replica(**here.settings(0)) as running:
            await here.install(here.info(0))
            body = chat("one two three four " * 60)
            await post(running, body, cache_salt="salt of acme")
            await here.holds(chat("one two three four " * 60, cache_salt="salt of acme"), {b"tiny-0.g1": 288})
            await here.holds(body, {})
            here.matching.install(Topology(2, "test", (replace(here.model, isolated=True),), (here.info(0),)))
            await here.holds(body, {b"tiny-0.g1": 288})
            await here.holds(body, {}, tenant=b"other")
            theirs = chat("one two three four " * 60, cache_salt="salt of acme")
            await here.holds(theirs, {}, tenant=b"other")


class Wrong:
    """Makes other tokens than the engine."""

    def tokens(self, kind: int, asked: Mapping[str, Any]) -> array[int]:
        return array("I", range(200))


async def test_tokens_that_no_engine_tells_of_are_not_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agreement, "LOOK_AFTER_S", 0.05)
    async with world() as here:
        with replica(**here.settings(0)) as running:
            await here.install(here.info(0))
            ((_, _, index),) = here.matching.models()
            model = here.matching._models["tiny"]
            right, model.tokenizer = model.tokenizer, Wrong()
            body = chat("one two three four " * 60)
            await post(running, body)
            await here.until(lambda: len(index) > 0)

            async def send() -> bool:
                prompt = await here.match(body)
                assert prompt is not None
                prompt.sent(b"tiny-0.g1")
                await asyncio.sleep(0.06)
                return prompt.held is not None

            async with asyncio.timeout(DEADLINE_S):
                while await send():
                    pass
                assert "do not tell of the tokens" in caplog.text
                model.tokenizer = right
                while not await send():
                    pass
            assert here.matching.counters.fallbacks["disagreement"] > 0
