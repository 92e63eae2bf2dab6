"""Reads what this machine's engines report, from a socket of datagrams.

While there are some they are read on a timer, which spares a wake-up of the process for each, and before the lines of
the log (``log_feed``): what an engine reports of a request is known before the request is taken to have ended.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from controlplane.router.counters import Counters
from controlplane.routing.events import Completion

_log = logging.getLogger(__name__)

#: 64 lines with the longest ids (docs/contracts.md); a longer datagram is cut, and its last line is then malformed.
MAX_DATAGRAM_BYTES = 16_384
#: Datagrams taken in one turn, so that decisions never wait for more than some milliseconds of reports.
MAX_DATAGRAMS_PER_TURN = 128
#: A first token is known no later than this.
INTERVAL_S = 0.01
RECEIVE_BUFFER_BYTES = 4 << 20


class ReportFeed:
    """Hands each datagram to ``take``."""

    def __init__(self, bound: socket.socket, take: Callable[[bytes], object], counters: Counters) -> None:
        self._socket = bound
        self._receive = bound.recv
        self._take = take
        self._counters = counters
        self._timer: asyncio.TimerHandle | None = None
        #: Whether nothing has come for a while, and the loop tells when something does.
        self._quiet = False
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def start(self, long_queue: bool) -> None:
        """Read on the running loop: the first datagram at once, those after it on a timer until there are no more.

        Where the kernel's queue is short, each as soon as it is there.
        """
        if long_queue:
            self._wait()
        else:
            asyncio.get_running_loop().add_reader(self._socket, self.drain)

    def stop(self) -> None:
        """Read no more and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def before(self, finished: Callable[[Completion, float], bool]) -> Callable[[Completion, float], bool]:
        """Return a ``finished`` that reads reports first: an engine reports before its answer's last byte leaves.

        They are read once for all lines of one time, and not while none come: an empty socket costs as much as a full
        one. What comes in between is late, and the core knows a request for a while after its end.
        """
        read_at_s = -1.0

        def after_reports(completion: Completion, now_s: float) -> bool:
            nonlocal read_at_s
            if now_s != read_at_s and not self._quiet:
                read_at_s = now_s
                self.drain()
            return finished(completion, now_s)

        return after_reports

    def _wait(self) -> None:
        self._timer = None
        self._quiet = True
        asyncio.get_running_loop().add_reader(self._socket, self._begin)

    def _begin(self) -> None:
        self._quiet = False
        asyncio.get_running_loop().remove_reader(self._socket)
        self._again()

    def _again(self) -> None:
        if self.drain():
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._again)
        else:
            self._wait()

    def drain(self) -> int:
        """Take what is there; return how many datagrams that were. Never raises."""
        receive = self._receive
        count = 0
        try:
            while count < MAX_DATAGRAMS_PER_TURN:
                data = receive(MAX_DATAGRAM_BYTES)
                count += 1
                self._take(data)
        except BlockingIOError:
            return count
        except Exception as error:
            counters = self._counters
            counters.errors += 1
            if counters.errors.bit_count() == 1:
                _log.warning("error no. %d, in the report feed: %s", counters.errors, type(error).__name__)
        return count
