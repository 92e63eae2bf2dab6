"""The SPOP server: HAProxy's questions in, answers out, on one unix socket.

All connections read into one buffer: uvloop asks for it, fills it and hands it over within one call, so that a thousand
idle connections hold no memory of their own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from controlplane.router.counters import Counters
from controlplane.router.deferred import Deferred
from controlplane.router.questions import Question, Wait, Whole, answer, read_notify, read_question
from controlplane.router.spop.connection import AgentConnection, State
from controlplane.router.spop.errors import ProtocolError, Status
from controlplane.router.spop.frames import Notify

_log = logging.getLogger(__name__)

#: HAProxy 2.8 opens one connection for each decision that waits at once; while the router is stopped these pile up.
MAX_CONNECTIONS = 4096
#: Connections that the kernel holds until they are accepted.
BACKLOG = 1024
#: One question with the longest body that comes raw (131,072 bytes), which is then read where it arrived, or some 400
#: short ones: the longest that one connection keeps all others waiting is some 7 ms.
RECEIVE_BYTES = 144 * 1024
#: Answers that a peer does not read; beyond them nothing more is read from it.
MAX_UNSENT_BYTES = 64 * 1024
#: Seconds within which a connection must have said HELLO, and a frame that has begun must go on.
STALL_S = 10.0
#: Turns of the loop in which aborted connections are let go of; one or two do.
CLOSING_TURNS = 100

#: Returns the payload that answers a question, or what answers it later; never raises.
Decide = Callable[[Question | Whole | Wait], bytes | Deferred]


class SpopProtocol(asyncio.BufferedProtocol):
    """One connection from HAProxy."""

    def __init__(self, server: SpopServer) -> None:
        self._server = server
        self._connection: AgentConnection[Question | Whole] = AgentConnection(read_question)
        self._transport: asyncio.Transport | None = None
        self._stalled_at = -1
        self.deferred: set[Deferred] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register, or refuse when there are too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, not its type
        if not self._server.admit(self):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; HAProxy has already given up on what it had asked."""
        self._server.connections.discard(self)
        while self.deferred:
            self.deferred.pop().lost()

    def send_answer(self, ids: bytes, payload: bytes) -> None:
        """Write the ACK of one message whose answer was deferred."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer(ids, payload))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all connections share."""
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Answer everything that has arrived, in one write."""
        transport = self._transport
        if transport is None:
            return
        connection = self._connection
        try:
            events = connection.receive(self._server.received, nbytes)
        except ProtocolError as error:
            self._server.reject(error)
            events = []
        if events:
            transport.write(self._server.answer(events, self))
        if connection.has_data_to_send:
            transport.write(connection.data_to_send())
            if connection.state is State.CLOSED:
                transport.close()

    def pause_writing(self) -> None:
        """Read no more from a peer that does not read."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def reap(self) -> bool:
        """Close the connection and return True when it stands where it stood at the last call, inside something."""
        connection, transport = self._connection, self._transport
        waiting = connection.state is not State.READY or connection.pending_bytes > 0
        stands_at = connection.pending_bytes if waiting else -1
        if transport is None or stands_at < 0 or stands_at != self._stalled_at:
            self._stalled_at = stands_at
            return False
        if connection.state is State.CLOSED:
            transport.abort()  # it does not even read the farewell
            return True
        connection.close(Status.TIMEOUT, "the peer went silent inside a frame")
        transport.write(connection.data_to_send())
        transport.close()
        return True

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class SpopServer:
    """Listens for HAProxy. ``before`` runs before each batch of decisions; ``decide`` answers one question."""

    def __init__(self, decide: Decide, before: Callable[[], None], counters: Counters) -> None:
        self.connections: set[SpopProtocol] = set()
        self.received = bytearray(RECEIVE_BYTES)
        self.buffer = memoryview(self.received)
        self._decide = decide
        self._before = before
        self._counters = counters
        self._server: asyncio.Server | None = None
        self._reaper: asyncio.TimerHandle | None = None

    async def start(self, bound: socket.socket) -> None:
        """Listen on a bound unix socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: SpopProtocol(self), sock=bound, backlog=BACKLOG)
        self._reaper = loop.call_later(STALL_S, self._reap)

    async def stop(self) -> None:
        """Close the listener and every connection: HAProxy then balances by itself at once."""
        if self._reaper is not None:
            self._reaper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.abort()
        for _ in range(CLOSING_TURNS):
            if not self.connections:
                break
            await asyncio.sleep(0)

    def admit(self, connection: SpopProtocol) -> bool:
        """Return whether there is room for one more connection."""
        if len(self.connections) >= MAX_CONNECTIONS:
            self._counters.connections_refused += 1
            return False
        self.connections.add(connection)
        return True

    def reject(self, error: ProtocolError) -> None:
        """Count a connection that broke the protocol."""
        self._counters.protocol_errors += 1
        if self._counters.protocol_errors.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a flood stays readable
            _log.warning("protocol error no. %d: %s", self._counters.protocol_errors, error.message)

    def answer(self, events: list[Notify | Question | Whole], connection: SpopProtocol) -> bytes:
        """Return the ACK frames for all these questions but those that are answered later."""
        self._before()
        decide = self._decide
        frames = []
        for event in events:
            if isinstance(event, Notify):
                ids, question = read_notify(event)
                payload = b"" if question is None else decide(question)
            else:
                ids = event[0]
                payload = decide(event)
            if isinstance(payload, Deferred):
                payload.bind(connection, ids)
            else:
                frames.append(answer(ids, payload))
        return b"".join(frames)

    def _reap(self) -> None:
        self._counters.connections_reaped += sum(connection.reap() for connection in tuple(self.connections))
        self._reaper = asyncio.get_running_loop().call_later(STALL_S, self._reap)
