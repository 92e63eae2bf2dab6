"""What engines report of their requests, in the lines of docs/contracts.md. Sans-I/O.

Reports steer nothing that the router's own book does not know: each names a request that is in flight and the server
that it is believed to be at, or it is counted by the reason why it was ignored, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from typing import NamedTuple, Protocol, TypeAlias

from controlplane.routing.events import CacheCleared, EngineReport, FirstByte

#: Kinds of reports, and reasons for ignoring one, as metrics name them.
KINDS = ("first_token", "finished", "cache_cleared")
REASONS = ("malformed", "unknown_server", "impossible", "replayed", "not_in_flight")
#: Tokens of one request beyond which no engine works.
MAX_TOKENS = 1 << 28
#: Microseconds of one request beyond which nobody waits: a day.
MAX_TIME_US = 86_400_000_000
#: Requests whose end was told that are remembered, so that a report told again is not believed twice. The core forgets
#: a request when its answer has ended; there are rarely more in between.
MAX_REMEMBERED = 8_192
#: Longest request id that a log line takes.
MAX_ID_BYTES = 128
#: Servers whose count of lost reports is kept.
MAX_SERVERS = 65_536

Event: TypeAlias = FirstByte | EngineReport | CacheCleared


class Told(NamedTuple):
    """One engine's report: its server, what it could not deliver since its start, and what it tells, in order."""

    server: bytes
    dropped: int
    events: list[Event]
    malformed: int


class Core(Protocol):
    """What the routing core takes."""

    def first_byte(self, heard: FirstByte, now_s: float) -> bool:
        """Take a first byte."""

    def reported(self, report: EngineReport, now_s: float) -> bool:
        """Take what a request took."""

    def cache_cleared(self, cleared: CacheCleared, now_s: float) -> bool:
        """Take that a cache is empty."""


def parse(datagram: bytes) -> Told | None:
    """Return what one datagram says; None when its first line is not one."""
    head, *lines = datagram.split(b"\n")
    try:
        tag, server, dropped = head.split(b" ")
        lost = int(dropped)
    except ValueError:
        return None
    if tag != b"S" or not server or lost < 0:
        return None
    events: list[Event] = []
    malformed = 0
    for line in lines:
        event = _event(server, line)
        if event is None:
            malformed += 1
        else:
            events.append(event)
    return Told(server, lost, events, malformed)


def _event(server: bytes, line: bytes) -> Event | None:
    fields = line.split(b" ")
    tag = fields[0]
    if len(line) > MAX_ID_BYTES + 128:
        return None
    if tag == b"F" and len(fields) == 2 and 0 < len(fields[1]) <= MAX_ID_BYTES:
        return FirstByte(fields[1], server)
    if tag == b"C" and len(fields) == 1:
        return CacheCleared(server)
    if tag != b"E" or len(fields) != 7 or not 0 < len(fields[1]) <= MAX_ID_BYTES:
        return None
    try:
        prompt, cached, output, queue_us, prefill_us = map(int, fields[2:])
    except ValueError:
        return None
    return EngineReport(fields[1], server, prompt, cached, output, _seconds(queue_us), _seconds(prefill_us))


def _seconds(time_us: int) -> float:
    return time_us / 1e6 if time_us >= 0 else -1.0


class Reports:
    """Hands what was told to the core, and counts what was taken and what was not."""

    def __init__(self, core: Core, clock: Callable[[], float]) -> None:
        self.servers: Container[bytes] = ()
        self.taken: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.ignored: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._core = core
        self._clock = clock
        self._lost: dict[bytes, int] = {}
        self._ended: dict[bytes, None] = {}

    @property
    def dropped(self) -> int:
        """Reports that engines could not deliver, of those heard of."""
        return sum(self._lost.values())

    def datagram(self, data: bytes) -> None:
        """Take one datagram."""
        told = parse(data)
        if told is None:
            self.ignored["malformed"] += 1
        else:
            self.take(told)

    def take(self, told: Told) -> None:
        """Take what one engine told."""
        server, dropped, events, malformed = told
        self.ignored["malformed"] += malformed
        if server not in self.servers:
            self.ignored["unknown_server"] += len(events)
            return
        if len(self._lost) < MAX_SERVERS:
            self._lost[server] = max(dropped, self._lost.get(server, 0))
        now_s = self._clock()
        for event in events:
            if isinstance(event, FirstByte):
                kind, reason = "first_token", self._first_byte(event, now_s)
            elif isinstance(event, EngineReport):
                kind, reason = "finished", self._finished(event, now_s)
            else:
                self._core.cache_cleared(event, now_s)
                kind, reason = "cache_cleared", ""
            if reason:
                self.ignored[reason] += 1
            else:
                self.taken[kind] += 1

    def _first_byte(self, heard: FirstByte, now_s: float) -> str:
        return "" if self._core.first_byte(heard, now_s) else "not_in_flight"

    def _finished(self, report: EngineReport, now_s: float) -> str:
        if not possible(report):
            return "impossible"
        ended = self._ended
        if report.request_id in ended:
            return "replayed"
        if not self._core.reported(report, now_s):
            return "not_in_flight"
        ended[report.request_id] = None
        if len(ended) > MAX_REMEMBERED:
            del ended[next(iter(ended))]
        return ""


def possible(report: EngineReport) -> bool:
    """Return whether an engine that works could tell this."""
    _, _, prompt, cached, output, queue_s, prefill_s = report
    longest_s = MAX_TIME_US / 1e6
    return (
        -1 <= prompt <= MAX_TOKENS
        and -1 <= cached <= prompt
        and -1 <= output <= MAX_TOKENS
        and queue_s <= longest_s
        and prefill_s <= longest_s
    )
