"""An answer that is given later: the ACK of one SPOE message, held back while HAProxy waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Connection(Protocol):
    """What an answer needs of the connection that asked."""

    deferred: set[Deferred]

    def send_answer(self, ids: bytes, payload: bytes) -> None:
        """Write the ACK of one message."""


class Deferred:
    """Returned instead of a payload by whoever answers a question; ``answer`` is called once, in the same event loop.

    ``on_lost`` is called instead when the connection ends before that: HAProxy then goes on without the answer. It
    goes on, too, when its timeout for the message passes, and nobody is told of that. A question's body may be a view
    of the receive buffer: take what is needed of it before this is returned.
    """

    __slots__ = ("_connection", "_ids", "_on_lost")

    def __init__(self, on_lost: Callable[[], None] | None = None) -> None:
        self._connection: Connection | None = None
        self._ids = b""
        self._on_lost = on_lost

    def bind(self, connection: Connection, ids: bytes) -> None:
        """Take the question's connection and ids; the server does this."""
        self._connection = connection
        self._ids = ids
        connection.deferred.add(self)

    def answer(self, payload: bytes) -> bool:
        """Send the answer (a payload as ``questions.variables`` makes it). False: the connection is gone."""
        connection = self._connection
        if connection is None:
            return False
        self._connection = None
        connection.deferred.discard(self)
        connection.send_answer(self._ids, payload)
        return True

    def lost(self) -> None:
        """Note that the connection has ended; the server does this."""
        self._connection = None
        if self._on_lost is not None:
            self._on_lost()
