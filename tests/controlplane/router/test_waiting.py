"""Requests that wait, asked for as HAProxy asks: over real SPOP connections to a real router core."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.router import unix_sockets, waiting
from controlplane.router.convert import topology as without_protobuf
from controlplane.router.counters import Counters
from controlplane.router.decisions import Decisions
from controlplane.router.deferred import Deferred
from controlplane.router.questions import Question, Wait, Whole, variables
from controlplane.router.server import SpopServer
from controlplane.router.spop.frames import Ack, Message, Notify, SetVar, encode
from controlplane.router.spop.values import Typed
from controlplane.routing.admission.settings import Settings
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import Completion, FirstByte
from controlplane.routing.features import Request, parse
from tests.controlplane.router import peer, world
from tests.controlplane.router.gateway import until
from tests.controlplane.router.peer import Peer

SERVER = b"tiny-mixed-0.g1"


class Router:
    """A core with admission at one replica, and the server that HAProxy asks."""

    def __init__(self, folder: Path) -> None:
        self.core = RoutingCore(receipt_capacity=1000)
        self.decisions = Decisions(self.core, time.time, Counters())
        self.path = folder / "spop.sock"
        self.server = SpopServer(self.decisions.answer, lambda: None, Counters())
        self.install(Settings(ttft_target_s=1e-6))
        self.core.decide(b"heard of", _tiny(), time.time())
        self.core.first_byte(FirstByte(b"heard of", SERVER), time.time())
        self.end(b"heard of")

    def install(self, admission: Settings | None) -> None:
        plain = without_protobuf(world.topology(servers=[(SERVER.decode(), 1)]))
        models = tuple(replace(model, admission=admission) for model in plain.models)
        self.core.install(replace(plain, models=models), time.time())
        self.decisions.topology_changed()

    def end(self, request_id: bytes) -> bool:
        return self.core.finished(Completion(request_id, SERVER, 200, 1, 2, 3, b"--", 0), time.time())

    def in_flight(self) -> int:
        return self.core.counters().in_flight


def _tiny() -> Request:
    return parse(world.record())


@asynccontextmanager
async def _running(tmp_path: Path) -> AsyncIterator[tuple[Router, Peer]]:
    router = Router(tmp_path)
    await router.server.start(unix_sockets.bind(router.path, socket.SOCK_STREAM))
    asker = await Peer.ready(router.path)
    try:
        yield router, asker
    finally:
        await peer.close_all()
        await router.server.stop()
        router.decisions.waiting.stop()


def _wait(peer: Peer, stream_id: int, request_id: bytes) -> None:
    peer.writer.write(encode(Notify(stream_id, 2, (Message(b"wait", ((b"id", Typed.string(request_id)),)),))))


async def _answer(peer: Peer) -> tuple[int, dict[str, object]]:
    """Return the stream, and the variables; None for one that is unset."""
    ack = await peer.frame()
    assert isinstance(ack, Ack)
    told: dict[str, object] = {a.name.decode(): a.value.value if isinstance(a, SetVar) else None for a in ack.actions}
    return ack.stream_id, told


LATER = {"later": b"1"}
GO = {"srv": SERVER, "pool": b"tiny-mixed", "later": None}


async def test_an_answer_is_held_back_while_others_are_given(tmp_path: Path) -> None:
    async with _running(tmp_path) as (router, asker):
        assert (await asker.ask(b"a", world.record()))["srv"] == SERVER
        assert await asker.ask(b"b", world.record()) == LATER
        _wait(asker, 7, b"b")
        assert await asker.ask(b"c", world.record()) == LATER
        assert await asker.ask(b"d", world.record(b"unknown")) == {"err": b"model_not_found"}
        assert router.core.waiting == 2 and router.in_flight() == 1
        router.end(b"a")
        assert await _answer(asker) == (7, GO)
        _wait(asker, 8, b"c")
        router.end(b"b")
        assert await _answer(asker) == (8, GO)
        router.end(b"c")
        assert router.in_flight() == 0 and len(router.decisions.waiting) == 0


async def test_a_decision_waits_for_the_question(tmp_path: Path) -> None:
    async with _running(tmp_path) as (router, asker):
        await asker.ask(b"a", world.record())
        assert await asker.ask(b"b", world.record()) == LATER
        router.end(b"a")
        await until(lambda: router.core.waiting == 0, "b is let go")
        _wait(asker, 7, b"b")
        assert await _answer(asker) == (7, GO)


async def test_haproxy_asks_again_after_each_slice(tmp_path: Path) -> None:
    async with _running(tmp_path) as (router, asker):
        router.decisions.waiting.slice_s = 0.02
        await asker.ask(b"a", world.record())
        await asker.ask(b"b", world.record())
        for stream_id in range(3):
            _wait(asker, stream_id, b"b")
            assert await _answer(asker) == (stream_id, {})
        assert router.core.waiting == 1
        _wait(asker, 9, b"b")
        router.end(b"a")
        assert await _answer(asker) in ((9, GO), (9, {}))


async def test_a_client_that_left_loses_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "GRACE_S", 0.02)
    async with _running(tmp_path) as (router, asker):
        await asker.ask(b"a", world.record())
        for name in (b"b", b"c"):
            await asker.ask(name, world.record())
        await until(lambda: router.core.waiting == 0, "nobody asked for them")
        assert router.decisions.waiting.gone == 2
        await asker.ask(b"d", world.record())
        router.end(b"a")  # d is let go, and nobody comes for it
        await until(lambda: router.in_flight() == 0 and len(router.decisions.waiting) == 0, "it is counted no more")


async def test_a_connection_that_ends_gives_up_all_that_wait_on_it(tmp_path: Path) -> None:
    async with _running(tmp_path) as (router, asker):
        other = await Peer.ready(router.path)
        await asker.ask(b"a", world.record())
        for number in range(20):
            await asker.ask(b"w%d" % number, world.record())
            _wait(other, number, b"w%d" % number)
        await until(lambda: sum(map(len, (c.deferred for c in router.server.connections))) == 20, "all are asked for")
        await other.close()
        await until(lambda: router.core.waiting == 0, "their places are free")
        assert router.in_flight() == 1


async def test_a_request_that_is_not_known_is_routed_by_haproxy(tmp_path: Path) -> None:
    async with _running(tmp_path) as (_, asker):
        _wait(asker, 7, b"of a router before this one")
        assert await _answer(asker) == (7, {"later": None})


async def test_a_thousand_wait_on_one_connection(tmp_path: Path) -> None:
    async with _running(tmp_path) as (router, asker):
        router.install(Settings(ttft_target_s=1e-6, tenant_requests=2_000))
        await asker.ask(b"a", world.record())
        for number in range(1_000):
            await asker.ask(b"w%d" % number, world.record())
            _wait(asker, number, b"w%d" % number)
        await until(
            lambda: sum(map(len, (c.deferred for c in router.server.connections))) == 1_000, "all are asked for"
        )
        router.install(None)  # without admission all go at once
        answers = [await _answer(asker) for _ in range(1_000)]
        assert {stream_id for stream_id, _ in answers} == set(range(1_000))
        assert all(told == GO for _, told in answers)
        for name in (b"a", *(b"w%d" % number for number in range(1_000))):
            router.end(name)
        assert router.in_flight() == 0 and router.core.waiting == 0 and len(router.decisions.waiting) == 0


async def test_a_caller_over_grpc_waits_and_leaves(tmp_path: Path) -> None:
    async with _running(tmp_path) as (router, asker):
        await asker.ask(b"a", world.record())
        for name in (b"b", b"c"):
            assert router.core.decide(name, _tiny(), time.time()).outcome == "wait"
        stays = asyncio.create_task(router.decisions.waiting.decision(b"b"))
        leaves = asyncio.create_task(router.decisions.waiting.decision(b"c"))
        await until(lambda: len(router.decisions.waiting) == 2, "both wait")
        leaves.cancel()
        await until(lambda: router.core.waiting == 1, "one has left")
        router.end(b"a")
        assert (await stays).server == SERVER
        with pytest.raises(asyncio.CancelledError):
            await leaves
        router.end(b"b")
        assert router.in_flight() == 0


async def test_any_answer_may_come_later(tmp_path: Path) -> None:
    """What the server does for whoever computes answers elsewhere."""
    lost: list[Deferred] = []
    held: list[Deferred] = []

    def decide(question: Question | Whole | Wait) -> bytes | Deferred:
        held.append(Deferred(lambda: lost.append(held[0])))
        return held[-1]

    server = SpopServer(decide, lambda: None, Counters())
    await server.start(unix_sockets.bind(tmp_path / "s", socket.SOCK_STREAM))
    asker = await Peer.ready(tmp_path / "s")
    for number in range(3):
        asker.writer.write(peer.question(number, b"%d" % number, world.record()))
    await until(lambda: len(held) == 3, "all have asked")
    for number in (2, 1):
        assert held[number].answer(variables(srv=b"%d" % number))
        assert await _answer(asker) == (number, {"srv": b"%d" % number})
    assert not held[1].answer(b"")  # once
    await asker.close()
    await until(lambda: bool(lost), "the third knows that nobody listens")
    assert not held[0].answer(b"")
    await server.stop()
