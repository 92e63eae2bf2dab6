"""Tell the router what happens in this engine: lines in datagrams on a unix socket, never waiting for anyone.

docs/contracts.md, "An engine tells what it did", has the format.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

#: Lines that wait for a router whose queue is full; the oldest leave when there are more. 1,024 are some 80 KB.
MAX_PENDING = 1_024
#: Lines in one datagram: with the longest request ids still far below what a unix socket takes.
LINES_PER_DATAGRAM = 64
#: Seconds until a full queue is tried again; the router reads it every 20 ms at the latest while there is work.
RETRY_S = 0.01


class Datagrams:
    """Lines to one socket; use from one event loop. Without a ``path`` nothing is sent.

    A line leaves at the end of the loop's turn, with all others of that turn. What cannot be delivered is counted in
    ``dropped``, which every datagram carries: a full queue is tried again, a router that is not there is not.
    """

    def __init__(self, server: str, path: str) -> None:
        self._server = server
        self._path = path
        self._pending: list[bytes] = []
        self._handle: asyncio.Handle | None = None
        self._socket: socket.socket | None = None
        if path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.dropped = 0

    @property
    def open(self) -> bool:
        """Whether there is anybody to tell."""
        return self._socket is not None

    def put(self, line: bytes) -> None:
        """Send a line (without its line feed) at the end of this turn of the running loop."""
        if self._socket is None:
            return
        pending = self._pending
        pending.append(line)
        if len(pending) > MAX_PENDING:
            del pending[0]
            self.dropped += 1
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send now what waits."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        pending = self._pending
        while pending:
            lines = pending[:LINES_PER_DATAGRAM]
            try:
                self._send(lines)
            except BlockingIOError:
                self._handle = asyncio.get_running_loop().call_later(RETRY_S, self.flush)
                return
            except OSError:
                self.dropped += len(pending)
                pending.clear()
                return
            del pending[:LINES_PER_DATAGRAM]

    def _send(self, lines: Sequence[bytes]) -> None:
        head = b"S %s %d" % (self._server.encode(), self.dropped)
        assert self._socket is not None
        # By name each time: a router that starts again has another socket there.
        self._socket.sendto(b"\n".join((head, *lines)), self._path)

    def close(self) -> None:
        """Send no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
