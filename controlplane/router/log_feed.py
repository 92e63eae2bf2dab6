"""HAProxy's log: one datagram tells how one request ended (docs/contracts.md).

The kernel queues few datagrams on a unix socket (``net.unix.max_dgram_qlen``, 10 by default) and HAProxy never waits:
what does not fit is lost, and the reconciliation with ``show stat`` makes up for it. So the queue is made longer where
that is allowed. The socket is read before a batch of decisions, unless it was just read; in between, a long queue is
read on a timer, which spares one wake-up of the process for every request, and a short one as soon as there is a line.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from controlplane.router.counters import Counters
from controlplane.routing.events import Completion

_log = logging.getLogger(__name__)

#: Our lines are some 150 bytes, 350 at most; Python takes the memory of what is no longer than this from its own pool.
MAX_LINE_BYTES = 478
#: Lines taken in one turn, so that decisions never wait for more than about a millisecond of log.
MAX_LINES_PER_TURN = 256
#: Wanted room for datagrams; the kernel gives what it allows.
RECEIVE_BUFFER_BYTES = 4 << 20
#: What many distributions set. HAProxy's send buffer (net.core.wmem_default) is then the bound, usually 278 lines:
#: some 50 ms of log at 5,000 requests/s.
WANTED_QUEUE = 512
#: 278 lines then last for 13,900 lines/s between two decisions; after a turn without a line for 2,780, and an idle
#: router wakes up 10 times a second.
BUSY_INTERVAL_S = 0.02
#: Age of the last look at the socket up to which a decision takes no other: an empty socket costs as much as a line,
#: and a request lasts many times as long.
FRESH_S = 0.005
IDLE_INTERVAL_S = 0.1
QUEUE_SETTING = Path("/proc/sys/net/unix/max_dgram_qlen")

#: HAProxy's own line about a connection that ended before there was a request.
ERROR_TAG = b"E "

_MAX_NUMBER = 1 << 62
_new = tuple.__new__


def parse(line: bytes) -> Completion | None:
    """Return what one datagram says, or None when it is not what docs/contracts.md describes."""
    try:
        tag, request_id, _, server, status, first, total, sent, termination, retries = line.split()
        total_ms, sent_bytes = int(total), int(sent)
        if tag != b"R" or not -1 <= total_ms < _MAX_NUMBER or not 0 <= sent_bytes < _MAX_NUMBER:
            return None
        fields = (request_id, server, int(status), int(first), total_ms, sent_bytes, termination, int(retries))
    except ValueError:
        return None
    return _new(Completion, fields)


def lengthen_queue(setting: Path = QUEUE_SETTING) -> bool:
    """Raise the kernel's limit for sockets bound from now on, where that is allowed; return whether it is enough."""
    try:
        if int(setting.read_text()) >= WANTED_QUEUE:
            return True
        setting.write_text(str(WANTED_QUEUE))
    except (OSError, ValueError):
        _log.warning("set net.unix.max_dgram_qlen to %d or more: log lines are lost when HAProxy is busy", WANTED_QUEUE)
        return False
    _log.info("net.unix.max_dgram_qlen is now %d", WANTED_QUEUE)
    return True


class LogFeed:
    """Reads the log socket and hands each completion to ``finished``."""

    def __init__(
        self,
        bound: socket.socket,
        finished: Callable[[Completion, float], object],
        clock: Callable[[], float],
        counters: Counters,
    ) -> None:
        """``finished`` gets each completion with the ``clock``'s time, in seconds since 1970."""
        self._socket = bound
        self._clock = clock
        self._fresh_until_s = 0.0
        self._receive = bound.recv
        self._finished = finished
        self._counters = counters
        self._timer: asyncio.TimerHandle | None = None
        self._lines_before = 0
        # Linux bounds a unix socket's queue by the setting above and the sender's buffer; others bound it by this.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def start(self, long_queue: bool) -> None:
        """Read on the running loop: on a timer when the kernel's queue is long, else whenever something is there."""
        if long_queue:
            self._drain_again()
        else:
            asyncio.get_running_loop().add_reader(self._socket, self.drain)

    def stop(self) -> None:
        """Read no more and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _drain_again(self) -> None:
        self.drain()
        lines = self._counters.log_lines
        interval_s = IDLE_INTERVAL_S if lines == self._lines_before else BUSY_INTERVAL_S
        self._lines_before = lines
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._drain_again)

    def catch_up(self) -> None:
        """Take what is there unless that was done a moment ago; never raises."""
        if monotonic() >= self._fresh_until_s:
            self.drain()

    def drain(self) -> None:
        """Take what is there, at most MAX_LINES_PER_TURN lines; never raises."""
        receive = self._receive
        counters = self._counters
        finished = self._finished
        self._fresh_until_s = monotonic() + FRESH_S
        now_s = self._clock()
        try:
            for _ in range(MAX_LINES_PER_TURN):
                line = receive(MAX_LINE_BYTES)
                completion = parse(line)
                counters.log_lines += 1
                if completion is not None:
                    finished(completion, now_s)
                elif not line.startswith(ERROR_TAG):
                    counters.log_lines_malformed += 1
        except BlockingIOError:
            return
        except Exception as error:
            counters.errors += 1
            if counters.errors.bit_count() == 1:
                _log.warning("error no. %d, in the log feed: %s", counters.errors, type(error).__name__)
