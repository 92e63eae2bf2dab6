"""Follows the KV events of all replicas of precise models with one socket, and asks for what it missed.

An engine publishes ``[topic, number, payload]``; Slipstream starts it with its server name as the topic, so one
subscription tells incarnations apart whatever the address. Publishing loses what a subscriber is too slow for, what
came before it, and what a broken connection held; numbers show it, and the engine's replay socket has the last batches.

The engine's own numbering is the truth about whether it restarted: it is asked for its batches from the last one that
was applied, and an engine that does not have that one has begun again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import zmq
import zmq.asyncio

from controlplane.router.precise import wire
from controlplane.router.precise.counters import Counters
from controlplane.routing.block_events import Outcome
from controlplane.routing.block_index import BlockIndex

_log = logging.getLogger(__name__)

#: Batches that the kernel and ZeroMQ hold for each replica while decisions are made.
QUEUE_BATCHES = 10_000
#: Batches that are kept while those before them are fetched.
MAX_PENDING = 1_000
#: As many as an engine may hold for its slowest subscriber (vLLM's hwm).
REPLAY_QUEUE = 100_000
#: Replays at once: a router that starts does not make all engines answer together.
MAX_REPLAYS = 8
#: Seconds without a further batch after which a replay has failed. vLLM looks for requests every 0.1 s.
REPLAY_SILENCE_S = 5.0
#: Seconds from a failed replay to the next.
REPLAY_RETRY_S = 2.0
#: Seconds between two looks whether an engine's last batches were lost with nothing after them, or it began again.
CHECK_INTERVAL_S = 30.0
#: Seconds from asking one engine to asking the next: MAX_REPLAYS at 0.1 s each.
MIN_CHECK_GAP_S = 0.02
#: Batches that are applied before decisions get their turn: a batch of a few blocks takes some 20 us.
TURN_BATCHES = 16
RECONNECT_MS = 100
MAX_RECONNECT_MS = 5_000

_END = (-1).to_bytes(8, "big", signed=True)
_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Source:
    """Where one incarnation's events come from, and the index that they go to."""

    events: str  # ZeroMQ endpoints to connect to
    replay: str
    index: BlockIndex


class _Follower:
    """One incarnation that is followed."""

    __slots__ = ("pending", "source", "task")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pending: dict[int, bytes] = {}  # by number
        self.task: asyncio.Task[None] | None = None

    def keep(self, number: int, payload: bytes) -> None:
        """Keep a batch until those before it are there. What does not fit is fetched again."""
        if len(self.pending) < MAX_PENDING:
            self.pending[number] = payload


class Subscriber:
    """Keeps the block indexes true. Runs on the router's event loop; ``follow`` may be called before ``run``."""

    def __init__(self, counters: Counters, check_interval_s: float = CHECK_INTERVAL_S) -> None:
        self._counters = counters
        self._check_interval_s = check_interval_s
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.SUB)
        _set(self._socket, QUEUE_BATCHES)
        self._socket.subscribe(b"")
        self._followers: dict[bytes, _Follower] = {}
        self._connected: dict[str, int] = {}  # endpoint -> incarnations behind it
        self._replays = asyncio.Semaphore(MAX_REPLAYS)

    def follow(self, sources: Mapping[bytes, Source]) -> None:
        """Follow exactly these incarnations, by server name. Those that stay are not disturbed."""
        for server in [server for server, known in self._followers.items() if sources.get(server) != known.source]:
            self._leave(server)
        for server, source in sources.items():
            if server not in self._followers:
                self._join(server, source)

    async def close(self) -> None:
        """Let go of every connection."""
        tasks = [follower.task for follower in self._followers.values() if follower.task is not None]
        self.follow({})
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()

    async def run(self) -> None:
        """Take events until cancelled."""
        checking = asyncio.create_task(self._check())
        try:
            while True:
                for _ in range(TURN_BATCHES):
                    self._take(await self._socket.recv_multipart())
                await asyncio.sleep(0)  # a message that is there already does not let others run
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)

    def _join(self, server: bytes, source: Source) -> None:
        self._followers[server] = follower = _Follower(source)
        count = self._connected.get(source.events, 0)
        self._connected[source.events] = count + 1
        if not count:
            self._socket.connect(source.events)
        follower.task = asyncio.create_task(self._catch_up(server, follower))

    def _leave(self, server: bytes) -> None:
        follower = self._followers.pop(server)
        endpoint = follower.source.events
        count = self._connected.pop(endpoint) - 1
        if count:
            self._connected[endpoint] = count
        else:
            self._socket.disconnect(endpoint)
        if follower.task is not None:
            follower.task.cancel()

    def _take(self, frames: list[bytes]) -> None:
        """Apply one published message, or keep it while those before it are fetched."""
        counters = self._counters
        counters.messages += 1
        if len(frames) != 3 or len(frames[1]) != _NUMBER_BYTES:
            counters.malformed += 1
            return
        server, number, payload = frames[0], int.from_bytes(frames[1], "big"), frames[2]
        follower = self._followers.get(server)
        if follower is None:
            counters.strangers += 1
            return
        if follower.task is None:
            if self._apply(server, follower, number, payload) is Outcome.APPLIED:
                return
            # Beyond the next one: batches are missing. Before it: the engine may have begun again.
            follower.task = asyncio.create_task(self._catch_up(server, follower))
        follower.keep(number, payload)

    def _apply(self, server: bytes, follower: _Follower, number: int, payload: bytes) -> Outcome:
        """Apply one batch; one that cannot be read counts as empty, because no replay would bring a better one."""
        index = follower.source.index
        if number != index.expected(server):
            return index.apply(server, number, ())
        try:
            events = wire.events(payload)
        except wire.MalformedEvents as error:
            self._counters.malformed += 1
            if self._counters.malformed.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a flood stays readable
                _log.warning("KV events of %s cannot be read: %s", server.decode(errors="replace"), error)
            events = []
        return index.apply(server, number, events)

    async def _catch_up(self, server: bytes, follower: _Follower) -> None:
        """Bring a replica's index up to date from its replay socket, again until nothing is missing."""
        index = follower.source.index
        try:
            while True:
                before = index.expected(server)
                try:
                    async with self._replays:
                        began_again = await self._replay(server, follower)
                except (TimeoutError, zmq.ZMQError):
                    self._counters.replay_failures += 1
                    await asyncio.sleep(REPLAY_RETRY_S)
                    continue
                self._apply_pending(server, follower)
                if follower.pending and index.expected(server) == before and not began_again:
                    index.restart(server, min(follower.pending))  # the engine does not have what is missing either
                    self._apply_pending(server, follower)
                if not follower.pending and not began_again:
                    return
        finally:
            follower.task = None

    def _apply_pending(self, server: bytes, follower: _Follower) -> None:
        pending = follower.pending
        while (number := follower.source.index.expected(server)) in pending:
            self._apply(server, follower, number, pending.pop(number))
        for old in [known for known in pending if known < number]:
            del pending[old]

    async def _replay(self, server: bytes, follower: _Follower) -> bool:
        """Fetch all from the last applied batch on; return whether the engine had begun again, and was forgotten.

        Raises TimeoutError when it does not answer.
        """
        index = follower.source.index
        self._counters.replays += 1
        last = index.expected(server) - 1
        found = False
        with self._context.socket(zmq.DEALER) as socket:
            _set(socket, REPLAY_QUEUE)
            socket.connect(follower.source.replay)
            await socket.send_multipart((b"", max(0, last).to_bytes(_NUMBER_BYTES, "big")))
            async for number, payload in _answers(socket, server):
                if not found and number > index.expected(server):
                    index.restart(server, number)  # the engine no longer holds what is missing
                found = True
                if self._apply(server, follower, number, payload) is Outcome.GAP:
                    follower.keep(number, payload)
                self._counters.replayed += 1
                if self._counters.replayed % TURN_BATCHES == 0:
                    await asyncio.sleep(0)
        if found or last < 0:
            return False
        self._counters.restarts += 1
        index.restart(server, 0)
        follower.pending.clear()  # its numbers come again from 0
        return True

    async def _check(self) -> None:
        """Look now and then whether an engine has more than it was heard to say, or began again."""
        while True:
            servers = tuple(self._followers)
            for server in servers:
                # One after the other: while a replica is asked, what it publishes waits.
                await asyncio.sleep(max(self._check_interval_s / len(servers), MIN_CHECK_GAP_S))
                follower = self._followers.get(server)
                if follower is not None and follower.task is None:
                    follower.task = asyncio.create_task(self._catch_up(server, follower))
            if not servers:
                await asyncio.sleep(self._check_interval_s)


def _set(socket: zmq.asyncio.Socket, queue: int) -> None:
    for option, value in (
        (zmq.RCVHWM, queue),
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, wire.MAX_PAYLOAD_BYTES),
        (zmq.RECONNECT_IVL, RECONNECT_MS),
        (zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS),
        (zmq.IPV6, 1),
    ):
        socket.setsockopt(option, value)


async def _answers(socket: zmq.asyncio.Socket, server: bytes) -> AsyncIterator[tuple[int, bytes]]:
    """Yield (number, payload) until the engine says that there is no more. Raises TimeoutError.

    An answer is ``["", topic, number, payload]``, in older releases without the topic.
    """
    while True:
        async with asyncio.timeout(REPLAY_SILENCE_S):
            frames = await socket.recv_multipart()
        if len(frames) < 3 or len(frames[-2]) != _NUMBER_BYTES:
            continue
        if frames[-2] == _END:
            return
        if len(frames) == 3 or frames[1] == server:
            yield int.from_bytes(frames[-2], "big"), frames[-1]
