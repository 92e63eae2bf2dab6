"""Reads the engines' own figures, often where there is work and rarely where there is none.

Which replicas are read is decided in rounds. Each is due after an interval of its own: BUSY_INTERVAL_S while it has
requests, up to IDLE_INTERVAL_S when it has none, longer after failures. The most overdue are read first, at most
MAX_READS_PER_S in all: with N busy replicas each is read every max(2, N / 40) seconds, with 4,096 every 100 s. Nothing
waits for a reading: decisions use the last one, whose age everybody sees.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from controlplane.router import engine_metrics
from controlplane.router.engine_metrics import BadMetrics, Page
from controlplane.routing.events import CacheCleared, Telemetry
from controlplane.routing.figures import Load
from controlplane.routing.fleet import DRAINING, READY, ReplicaInfo
from dataplane.engines import probe

_log = logging.getLogger(__name__)

#: vLLM makes a page in 4 ms of the loop that also sends its tokens: no more than 0.2 % of them wait for one.
BUSY_INTERVAL_S = 2.0
IDLE_INTERVAL_S = 15.0
#: After failures the interval doubles up to this.
FAILED_INTERVAL_S = 60.0
#: A reading takes some 0.3 ms of the router: at most some 1.5 % of its time.
MAX_READS_PER_S = 40
MAX_CONCURRENT = 8
#: An engine in a long step answers late; then its figures would be late as well.
TIMEOUT_S = 3.0
#: A look at every replica's load takes some 3 us each: rounds get rarer with the replicas.
ROUND_S = 0.5
ROUND_S_PER_REPLICA = 0.002


@dataclass(slots=True)
class Source:
    """One engine to read, and what its last reading said."""

    host: str
    port: int
    page: Page | None = None
    read_at_s: float = -1.0
    tried_at_s: float = -1.0
    failures: int = 0
    ttft_s: float = -1.0  # mean of the engine's own between the last two readings
    restarts: int = 0
    reading: bool = False


class EngineTelemetry:
    """Hands readings to ``observed``, and engines that began again within a generation to ``cleared``."""

    def __init__(
        self,
        observed: Callable[[Telemetry, float], object],
        cleared: Callable[[CacheCleared, float], object],
        loads: Callable[[float], Iterable[Load]],
        clock: Callable[[], float],
    ) -> None:
        self.sources: dict[str, Source] = {}
        self.reads = 0
        self.failures = 0
        self.restarts = 0
        self._observed = observed
        self._cleared = cleared
        self._loads = loads
        self._clock = clock
        self._places = asyncio.Semaphore(MAX_CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._allowed = float(MAX_READS_PER_S)

    def take(self, replicas: Iterable[ReplicaInfo]) -> None:
        """Take the replicas of a new topology; what was read of those that stay is kept."""
        before = self.sources
        self.sources = {
            replica.server: before.get(replica.server) or Source(replica.host, replica.port)
            for replica in replicas
            if replica.state in (READY, DRAINING)
        }

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            while True:
                interval_s = max(ROUND_S, len(self.sources) * ROUND_S_PER_REPLICA)
                await asyncio.sleep(interval_s)
                self.round(interval_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def round(self, interval_s: float) -> None:
        """Start the readings that are due."""
        self._allowed = min(max(MAX_READS_PER_S, 1.0), self._allowed + MAX_READS_PER_S * interval_s)
        if not self.sources:
            return
        now_s = asyncio.get_running_loop().time()
        overdue: list[tuple[float, str]] = []
        for load in self._loads(self._clock()):
            source = self.sources.get(load.server)
            if source is None or source.reading:
                continue
            since_s = now_s - source.tried_at_s if source.tried_at_s >= 0 else FAILED_INTERVAL_S
            late = since_s / _interval_s(source, load.in_flight)
            if late >= 1.0:
                overdue.append((late, load.server))
        overdue.sort(reverse=True)
        for _, server in overdue[: int(self._allowed)]:
            self._allowed -= 1
            task = asyncio.create_task(self._read(server, self.sources[server]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read(self, server: str, source: Source) -> None:
        source.reading = True
        try:
            async with self._places:
                source.tried_at_s = asyncio.get_running_loop().time()
                async with asyncio.timeout(TIMEOUT_S):
                    answer = await probe.get(source.host, source.port, "/metrics")
                page = engine_metrics.parse(answer.body if answer.status == 200 else b"")
        except (OSError, TimeoutError, probe.ProbeFailed, BadMetrics) as error:
            self.failures += 1
            source.failures += 1
            if source.failures == 1:
                _log.info("no figures of %s: %s", server, error or type(error).__name__)
            return
        finally:
            source.reading = False
        if self.sources.get(server) is source:
            self._heard(server, source, page)

    def _heard(self, server: str, source: Source, page: Page) -> None:
        before, source.page = source.page, page
        source.read_at_s = asyncio.get_running_loop().time()
        source.failures = 0
        self.reads += 1
        now_s = self._clock()
        name = server.encode()
        if before is not None:
            if engine_metrics.began_again(before, page):
                self.restarts += 1
                source.restarts += 1
                source.ttft_s = -1.0
                _log.warning("the engine of %s began again: its cache is taken to be empty", server)
                self._cleared(CacheCleared(name), now_s)
            elif page.first_tokens > before.first_tokens:
                new = page.first_tokens - before.first_tokens
                source.ttft_s = max(0.0, page.first_tokens_s - before.first_tokens_s) / new
        self._observed(
            Telemetry(
                server=name,
                running=page.running,
                waiting=page.waiting,
                kv_use=page.kv_use,
                prefix_queries=page.prefix_queries,
                prefix_hits=page.prefix_hits,
                generated=page.generated,
                preemptions=page.preemptions,
                kv_capacity_tokens=page.kv_capacity_tokens,
            ),
            now_s,
        )


def _interval_s(source: Source, in_flight: int) -> float:
    """Return how long after a reading the next is due."""
    if source.failures:
        return float(min(FAILED_INTERVAL_S, BUSY_INTERVAL_S * 2 ** min(source.failures, 8)))
    page = source.page
    busy = in_flight or page is None or page.running or page.waiting
    return BUSY_INTERVAL_S if busy else IDLE_INTERVAL_S
