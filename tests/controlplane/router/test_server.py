import asyncio
import random
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.router import convert, log_feed, server, unix_sockets
from controlplane.router.counters import Counters
from controlplane.router.decisions import Decisions
from controlplane.router.log_feed import LogFeed
from controlplane.router.server import SpopServer
from controlplane.router.spop.errors import Status
from controlplane.router.spop.frames import Disconnect, decode
from controlplane.routing.core import RoutingCore
from tests.controlplane.router import recorded, world
from tests.controlplane.router.gateway import until
from tests.controlplane.router.peer import HELLO, Peer, question, whole

NOW_S = 1_700_000_000.0


class Running:
    """A SPOP server with a real core and a log socket, in this process."""

    def __init__(self, folder: Path) -> None:
        self.spop = folder / "spop.sock"
        self.log = folder / "log.sock"
        self.core = RoutingCore()
        self.core.install(convert.topology(world.topology()), NOW_S)
        self.counters = Counters()
        decisions = Decisions(self.core, lambda: NOW_S, self.counters)
        decisions.topology_changed()
        self.feed = LogFeed(
            unix_sockets.bind(self.log, socket.SOCK_DGRAM),
            self.core.finished,
            lambda: NOW_S,
            self.counters,
        )
        self.server = SpopServer(decisions.answer, self.feed.catch_up, self.counters)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Running]:
    router = Running(folder)
    await router.server.start(unix_sockets.bind(router.spop, socket.SOCK_STREAM))
    try:
        yield router
    finally:
        await router.server.stop()
        router.feed.stop()


async def test_route_names_a_server_and_its_pool(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.ready(router.spop)
        answers = [await peer.ask(b"r%d" % n, world.record()) for n in range(4)]
        assert {answer["pool"] for answer in answers} == {b"tiny-mixed"}
        assert sorted(answer["srv"] for answer in answers) == [b"tiny-mixed-0.g1"] * 2 + [b"tiny-mixed-1.g1"] * 2
        await peer.close()


async def test_the_other_outcomes(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.ready(router.spop)
        assert await peer.ask(b"a", world.record(b"unknown")) == {"err": b"model_not_found"}
        assert await peer.ask(b"b", world.record(b"", state=2)) == {"more": b"1"}
        body = b'{"prompt": "x", "model": "sql"}'
        answer = await peer.ask(b"b", world.record(b"", body_bytes=len(body), state=2), body)
        assert answer["pool"] == b"tiny-mixed"
        assert await peer.ask(b"c", world.record(b"", body_bytes=2, state=2), b"{]") == {"err": b"invalid_json"}
        await peer.close()


async def test_a_batch_is_answered_in_order_and_by_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.ready(router.spop)
        peer.writer.write(b"".join(question(n, b"r%d" % n, world.record()) for n in range(500)))
        assert [(await peer.answer())[0] for _ in range(500)] == list(range(500))
        await peer.close()


async def test_recorded_frames_of_haproxy(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.connect(router.spop)
        peer.writer.write(recorded.HEALTHCHECK)
        assert b"pipelining" in await peer.closed()
        assert router.counters.protocol_errors == 0


async def test_a_full_message_of_a_megabyte(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.ready(router.spop)
        body = b'{"model": "tiny", "prompt": "' + b"x" * 900_000 + b'"}'
        answer = await peer.ask(b"big", world.record(b"", body_bytes=len(body), state=2), body)
        assert answer["pool"] == b"tiny-mixed"
        await peer.close()


async def test_whole_bodies_of_every_size_in_pieces_of_every_size(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.ready(router.spop)
        sizes = (0, 200, 8_000, 13_000, 100_000, 131_000)
        bodies = [b'{"messages": "' + b"x" * size + b'", "model": "tiny"}' for size in sizes]
        stream = b"".join(whole(n, b"r%d" % n, body) for n, body in enumerate(bodies))
        for piece in (len(stream), 50_000, 7_001):
            for at in range(0, len(stream), piece):
                peer.writer.write(stream[at : at + piece])
                await peer.writer.drain()
            answers = [await peer.answer() for _ in bodies]
            assert [stream_id for stream_id, _ in answers] == list(range(len(bodies)))
            assert {variables["pool"] for _, variables in answers} == {b"tiny-mixed"}
        peer.writer.write(whole(9, b"bad", b'{"model": 1}') + whole(10, b"none", b""))
        assert (await peer.answer())[1] == {"err": b"invalid_model"}
        assert (await peer.answer())[1] == {"err": b"empty_body"}
        assert router.counters.errors == 0
        await peer.close()


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, recorded.ROUTE, b"\xff" * 5000],
    ids=["http", "zeros", "no-hello", "ones"],
)
async def test_garbage_gets_a_disconnect_and_hurts_nobody_else(tmp_path: Path, data: bytes) -> None:
    async with running(tmp_path) as router:
        other = await Peer.ready(router.spop)
        peer = await Peer.connect(router.spop)
        peer.writer.write(data)
        farewell = decode((await peer.closed())[4:])
        assert isinstance(farewell, Disconnect)
        assert farewell.status != Status.NORMAL
        assert router.counters.protocol_errors == 1
        assert "srv" in await other.ask(b"r", world.record())
        await other.close()


async def test_random_garbage_after_the_handshake(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with running(tmp_path) as router:
        for _ in range(30):
            peer = await Peer.ready(router.spop)
            frame = bytearray(recorded.LONG_ROUTE)
            for _ in range(4):
                frame[chance.randrange(4, len(frame))] = chance.randrange(256)
            peer.writer.write(bytes(frame) + b"\xff" * 8)
            await peer.closed()
        await until(lambda: not router.server.connections, "all connections are gone")
        other = await Peer.ready(router.spop)
        assert "srv" in await other.ask(b"r", world.record())
        await other.close()


async def test_half_a_frame_is_waited_for_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_S", 0.1)
    async with running(tmp_path) as router:
        silent = await Peer.connect(router.spop)
        half = await Peer.ready(router.spop)
        idle = await Peer.ready(router.spop)
        half.writer.write(recorded.ROUTE[:20])
        assert await silent.closed()
        farewell = decode((await half.closed())[4:])
        assert isinstance(farewell, Disconnect)
        assert farewell.status == Status.TIMEOUT
        assert router.counters.connections_reaped == 2
        assert "srv" in await idle.ask(b"r", world.record())
        await idle.close()


async def test_a_peer_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        sender = socket.socket(socket.AF_UNIX)
        sender.setblocking(False)
        sender.connect(str(router.spop))
        sender.send(HELLO)
        batch = b"".join(question(n, b"r%d" % n, world.record()) for n in range(100))
        sent = stuck = 0
        while stuck < 20 and sent < 50 << 20:
            try:
                sent += sender.send(batch)
                stuck = 0
            except BlockingIOError:
                stuck += 1
            await asyncio.sleep(0)
        assert sent < 4 << 20
        other = await Peer.ready(router.spop)
        assert "srv" in await other.ask(b"other", world.record())
        await other.close()
        sender.close()


async def test_a_thousand_connections(tmp_path: Path) -> None:
    async with running(tmp_path) as router:
        peers = await asyncio.gather(*(Peer.ready(router.spop) for _ in range(1000)))
        answers = await asyncio.gather(*(peer.ask(b"r%d" % n, world.record()) for n, peer in enumerate(peers)))
        assert all("srv" in answer for answer in answers)
        assert len(router.server.connections) == 1000
        for peer in peers:
            await peer.close()
        await until(lambda: not router.server.connections, "all connections are gone")


async def test_connections_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with running(tmp_path) as router:
        peers = [await Peer.ready(router.spop) for _ in range(2)]
        third = await Peer.connect(router.spop)
        assert await third.closed() == b""
        assert router.counters.connections_refused == 1
        for peer in peers:
            assert "srv" in await peer.ask(b"r", world.record())
            await peer.close()


async def test_an_exception_in_the_core_leaves_the_choice_to_haproxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as router:
        peer = await Peer.ready(router.spop)
        with monkeypatch.context() as broken:
            broken.setattr(RoutingCore, "decide", lambda *_: 1 // 0)
            assert await peer.ask(b"a", world.record()) == {}
        assert await peer.ask(b"b", b"not a record") == {}
        assert router.counters.errors == 2
        assert "srv" in await peer.ask(b"c", world.record())
        await peer.close()


async def test_the_log_is_read_before_a_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_feed, "FRESH_S", 0.0)
    async with running(tmp_path) as router:  # nothing else reads the log here
        peer = await Peer.ready(router.spop)
        first = await peer.ask(b"a", world.record())
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.connect(str(router.log))
        sender.send(b"R a tiny-mixed " + first["srv"] + b" 200 12 340 5000 ---- 0\n")
        sender.send(b"nonsense")
        assert sum(load.in_flight for load in router.core.loads()) == 1
        await peer.ask(b"b", world.record())
        assert sum(load.in_flight for load in router.core.loads()) == 1
        sender.send(b"E 127.0.0.1:1 edge: SSL handshake failure")
        await peer.ask(b"c", world.record())
        assert (router.counters.log_lines, router.counters.log_lines_malformed) == (3, 1)
        await peer.close()
        sender.close()


async def test_sockets_are_private_and_take_the_place_of_stale_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first = unix_sockets.bind(path, socket.SOCK_STREAM)
    inode = unix_sockets.inode(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = unix_sockets.bind(path, socket.SOCK_STREAM)
    unix_sockets.remove(path, inode)
    assert path.exists(), "a successor's socket stays"
    unix_sockets.remove(path, unix_sockets.inode(path))
    assert not list(tmp_path.iterdir())
    first.close()
    second.close()
