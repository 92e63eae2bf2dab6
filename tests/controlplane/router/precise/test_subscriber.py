"""The subscriber with real sockets: a publisher that loses, restarts and forgets, and a simulated engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from controlplane.router.precise import subscriber as module
from controlplane.router.precise.counters import Counters
from controlplane.router.precise.subscriber import Source, Subscriber
from controlplane.routing.block_events import as_tokens
from controlplane.routing.block_index import BlockIndex
from dataplane.engines.simulated.prompts import render
from tests.dataplane.engines.replicas import replica
from tests.ports import lease

DEADLINE_S = 15.0
SERVER = b"tiny-0.g1"
END = (-1).to_bytes(8, "big", signed=True)


async def until(accept: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not accept():
            await asyncio.sleep(0.01)
    assert accept(), what


def chain(first: int, blocks: int) -> bytes:
    """A payload that stores ``blocks`` blocks after the block ``first`` - 1."""
    event = {
        "type": "BlockStored",
        "block_hashes": list(range(first, first + blocks)),
        "parent_block_hash": first - 1 if first else None,
        "token_ids": [7] * 4 * blocks,
        "block_size": 4,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    return msgspec.msgpack.encode([0.0, [event], 0])


class Engine:
    """Publishes what it is told to, and answers replays from what it holds."""

    def __init__(self) -> None:
        events, replay = lease(2)
        self.events, self.replay = f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}"
        self.held: dict[int, bytes] = {}
        self.asked: list[int] = []
        self.answering = True
        self._context = zmq.asyncio.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.bind(self.events)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.replay)

    async def publish(self, number: int, payload: bytes, topic: bytes = SERVER) -> None:
        await self._pub.send_multipart((topic, number.to_bytes(8, "big"), payload))

    async def answer(self) -> None:
        while True:
            client, _, first = await self._router.recv_multipart()
            if not self.answering:
                continue
            self.asked.append(int.from_bytes(first, "big"))
            for number in sorted(self.held):
                if number >= self.asked[-1]:
                    frames = (client, b"", SERVER, number.to_bytes(8, "big"), self.held[number])
                    await self._router.send_multipart(frames)
            await self._router.send_multipart((client, b"", b"", END, b""))

    def close(self) -> None:
        self._pub.close(linger=0)
        self._router.close(linger=0)
        self._context.term()


class Followed:
    def __init__(self, check_interval_s: float = 60.0) -> None:
        self.engine = Engine()
        self.index = BlockIndex()
        self.index.join(SERVER, block_tokens=4)
        self.counters = Counters()
        self.subscriber = Subscriber(self.counters, check_interval_s)
        self.source = Source(self.engine.events, self.engine.replay, self.index)

    def held(self) -> int:
        return self.index.lookup(as_tokens([7] * 400)).get(SERVER, 0) // 4

    async def connected(self) -> None:
        """Publish to a stranger until the subscription has reached the engine."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.counters.strangers:
                await self.engine.publish(0, b"", b"nobody-0.g9")
                await asyncio.sleep(0.02)

    async def holds(self, blocks: int) -> None:
        await until(lambda: self.held() == blocks, f"{blocks} blocks, not {self.held()}")


@contextlib.asynccontextmanager
async def followed(check_interval_s: float = 60.0, held: dict[int, bytes] | None = None) -> AsyncIterator[Followed]:
    world = Followed(check_interval_s)
    world.engine.held = held or {}
    tasks = [asyncio.create_task(world.engine.answer()), asyncio.create_task(world.subscriber.run())]
    world.subscriber.follow({SERVER: world.source})
    try:
        await world.connected()
        yield world
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.subscriber.close()
        world.engine.close()


async def test_what_was_before_comes_by_replay_and_the_rest_live() -> None:
    async with followed(held={0: chain(0, 2), 1: chain(2, 1)}) as world:
        await world.holds(3)
        await world.engine.publish(2, chain(3, 4))
        await world.holds(7)
        assert world.engine.asked == [0]


async def test_a_gap_is_filled_by_replay() -> None:
    async with followed() as world:
        await world.engine.publish(0, chain(0, 1))
        await world.holds(1)
        world.engine.held = {0: chain(0, 1), 1: chain(1, 1), 2: chain(2, 1)}
        await world.engine.publish(2, chain(2, 1))  # 1 was lost
        await world.holds(3)
        await world.engine.publish(3, chain(3, 1))
        await world.holds(4)
        assert world.index.complete(SERVER)


async def test_a_gap_that_the_engine_cannot_fill_forgets_the_replica() -> None:
    async with followed() as world:
        await world.engine.publish(0, chain(0, 5))
        await world.holds(5)
        world.engine.held = {9: chain(0, 2)}
        await world.engine.publish(9, chain(0, 2))
        await world.holds(2)
        assert not world.index.complete(SERVER)
        assert world.index.expected(SERVER) == 10


async def test_a_number_that_the_engine_never_gave_is_not_waited_for() -> None:
    async with followed(held={0: chain(0, 1)}) as world:
        await world.holds(1)
        world.engine.held = {0: chain(0, 1), 2: chain(0, 3)}
        await world.engine.publish(2, chain(0, 3))
        await world.holds(3)


async def test_an_engine_that_begins_again_is_forgotten_and_learned_anew() -> None:
    async with followed(held={n: chain(n, 1) for n in range(6)}) as world:
        await world.holds(6)
        world.engine.held = {0: chain(0, 2)}
        await world.engine.publish(0, chain(0, 2))
        await world.holds(2)
        assert world.counters.restarts == 1


async def test_a_check_finds_a_restart_that_nothing_told_of() -> None:
    async with followed(0.05, held={n: chain(n, 1) for n in range(6)}) as world:
        await world.holds(6)
        world.engine.held = {}
        await world.holds(0)


async def test_repeated_and_foreign_messages_change_nothing() -> None:
    async with followed(held={n: chain(n, 1) for n in range(3)}) as world:
        await world.holds(3)
        for number in (1, 2, 0):
            await world.engine.publish(number, chain(0, 9))
        await world.engine.publish(3, chain(0, 9), b"tiny-0.g0")
        await world.engine.publish(3, chain(3, 1))
        await world.holds(4)
        assert world.counters.strangers > 1 and world.counters.restarts == 0


async def test_what_cannot_be_read_is_counted_and_passed_over() -> None:
    async with followed() as world:
        await world.engine.publish(0, b"\xc1")
        await world.engine.publish(1, chain(0, 1))
        await world.holds(1)
        assert world.counters.malformed == 1


async def test_an_engine_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLAY_SILENCE_S", 0.05)
    monkeypatch.setattr(module, "REPLAY_RETRY_S", 0.05)
    async with followed() as world:
        world.engine.answering = False
        world.engine.held = {0: chain(0, 1), 1: chain(1, 1)}
        await world.engine.publish(1, chain(1, 1))
        await until(lambda: world.counters.replay_failures > 1, "failures")
        world.engine.answering = True
        await world.holds(2)


async def test_another_incarnation_starts_with_nothing() -> None:
    async with followed(held={0: chain(0, 3)}) as world:
        await world.holds(3)
        world.index.leave(SERVER)
        world.subscriber.follow({})
        await world.engine.publish(1, chain(3, 1))
        world.index.join(SERVER)
        world.engine.held = {}
        world.subscriber.follow({SERVER: world.source})
        await until(lambda: len(world.engine.asked) > 1, "asked again")
        assert world.held() == 0


async def test_a_simulated_engine() -> None:
    prefix = f"ipc://@slipstream-test-{lease()[0]}"
    settings: dict[str, Any] = {
        "kv_events_endpoint": f"{prefix}-e",
        "kv_replay_endpoint": f"{prefix}-r",
        "kv_events_topic": "tiny-0.g1",
    }
    index, counters = BlockIndex(), Counters()
    index.join(SERVER)
    messages = [{"role": "user", "content": "words and more words " * 40}]
    ask = {"model": "tiny", "messages": messages, "max_tokens": 1}
    with replica(**settings) as running:
        (await asyncio.to_thread(running.post, "/v1/chat/completions", ask)).raise_for_status()
        subscriber = Subscriber(counters)
        task = asyncio.create_task(subscriber.run())
        subscriber.follow({SERVER: Source(f"{prefix}-e", f"{prefix}-r", index)})
        tokens = render(messages)
        whole = len(tokens) // 16 * 16
        await until(lambda: index.lookup(tokens).get(SERVER) == whole, "the replay")
        salted = {**ask, "cache_salt": "tenant"}
        (await asyncio.to_thread(running.post, "/v1/chat/completions", salted)).raise_for_status()
        await until(lambda: index.lookup(tokens, "", "tenant").get(SERVER) == whole, "another tenant's")
        (await asyncio.to_thread(running.post, "/reset_prefix_cache", {})).raise_for_status()
        await until(lambda: len(index) == 0, "cleared")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await subscriber.close()
    assert counters.malformed == 0
