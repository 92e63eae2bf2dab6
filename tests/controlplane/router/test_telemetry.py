"""Engines' own figures: read off real pages, at a rate that follows the work, and never believed blindly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.router import convert, engine_metrics, telemetry
from controlplane.router.engine_metrics import BadMetrics, Page, began_again
from controlplane.router.telemetry import BUSY_INTERVAL_S, FAILED_INTERVAL_S, IDLE_INTERVAL_S, EngineTelemetry, Source
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import CacheCleared, Telemetry
from controlplane.routing.figures import Load
from dataplane.engines import probe
from dataplane.pb.topology_pb2 import REPLICA_STATE_STARTING
from tests.controlplane.router import world
from tests.controlplane.router.gateway import until

#: Of vLLM 0.32, without its histograms' buckets.
RECORDED = Path(__file__).parent / "recorded" / "vllm_metrics.txt"
PAGE = b"""\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
process_start_time_seconds 1.7e+09
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b} \\"c"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="a"} 100.0
vllm:cache_config_info{block_size="32",engine="0",kv_cache_size_tokens="65536",num_gpu_blocks="2048"} 1.0
vllm:prefix_cache_hits_total{engine="0",model_name="a"} 40.0
vllm:generation_tokens_total{engine="0",model_name="a"} 7.0
vllm:num_preemptions_total{engine="0",model_name="a"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="a"} 3.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="a"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="a"} 1.5
"""
READ = Page(3, 4, 0.5, 100, 40, 7, 1, 4, 1.5, 1.7e9, 65_536)


def test_a_page() -> None:
    assert engine_metrics.parse(PAGE) == READ


def test_a_page_of_a_real_vllm() -> None:
    page = engine_metrics.parse(RECORDED.read_bytes())
    assert page.started_s > 1.7e9
    assert page.prefix_queries >= page.prefix_hits
    assert page.kv_capacity_tokens == 65_536
    assert page.generated > 0 and page.first_tokens > 0 and page.first_tokens_s > 0


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html></html>",
        b"sglang:num_running_reqs 1.0\n",
        b"vllm:num_requests_running -1\n",
        b"vllm:num_requests_running 1e300\n",
        b"vllm:num_requests_running 1e999\n",
        b"vllm:num_requests_running e.+\n",
    ],
)
def test_other_pages_are_refused(page: bytes) -> None:
    with pytest.raises(BadMetrics):
        engine_metrics.parse(page)


def test_an_engine_that_began_again() -> None:
    assert not began_again(READ, READ)
    assert not began_again(READ, READ._replace(running=0, prefix_queries=101, generated=9))
    assert began_again(READ, READ._replace(started_s=1.7e9 + 60, prefix_queries=500, generated=500, first_tokens=50))
    assert began_again(READ, READ._replace(started_s=0.0, generated=6))
    assert began_again(READ, READ._replace(prefix_queries=0))


class Engine:
    """Serves /metrics, and breaks as it is told."""

    def __init__(self) -> None:
        self.page = PAGE
        self.status = b"200 OK"
        self.reads = 0
        self.silent = False

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /metrics HTTP/1.1\r\n")
        self.reads += 1
        if not self.silent:
            writer.write(b"HTTP/1.0 " + self.status + b"\r\n\r\n" + self.page)
            await writer.drain()
        else:
            await reader.read()
        writer.close()


class Bench:
    """A core with one replica whose engine is real enough, and its telemetry."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self.topology = world.topology(servers=(("tiny-mixed-0.g1", port),))
        self.core = RoutingCore()
        self.heard: list[Telemetry] = []
        self.cleared: list[CacheCleared] = []
        self.telemetry = EngineTelemetry(self._observed, self._cleared, self.core.loads, lambda: 1_000.0)
        self.install()

    def _observed(self, told: Telemetry, now_s: float) -> None:
        assert self.core.observed(told, now_s)
        self.heard.append(told)

    def _cleared(self, told: CacheCleared, now_s: float) -> None:
        assert self.core.cache_cleared(told, now_s)
        self.cleared.append(told)

    def install(self) -> None:
        topology = convert.topology(self.topology)
        self.core.install(topology, 1_000.0)
        self.telemetry.take(topology.replicas)

    @property
    def source(self) -> Source:
        return self.telemetry.sources["tiny-mixed-0.g1"]

    async def read(self, page: bytes = PAGE) -> None:
        """Read at once, whatever the interval."""
        self.engine.page = page
        self.source.tried_at_s = -1.0
        self.source.failures = 0
        done = self.telemetry.reads + self.telemetry.failures
        self.telemetry.round(1.0)
        await until(lambda: self.telemetry.reads + self.telemetry.failures > done, "a reading")


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    engine = Engine()
    server = await asyncio.start_server(engine.answer, "127.0.0.1", 0)
    try:
        yield Bench(engine, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()


async def test_a_reading_reaches_the_core() -> None:
    async with bench() as one:
        await one.read()
        (load,) = one.core.loads(1_003.0)
        assert (load.kv_use, load.telemetry_age_s) == (0.5, 3.0)
        assert one.heard == [Telemetry(b"tiny-mixed-0.g1", 3, 4, 0.5, 100, 40, 7, 1, 65_536)]
        assert one.source.ttft_s == -1.0
        more = PAGE.replace(b'_count{engine="0",model_name="a"} 4.0', b'_count{engine="0",model_name="a"} 8.0')
        await one.read(more.replace(b"} 1.5", b"} 2.5"))
        assert one.source.ttft_s == 0.25
        assert one.cleared == []


async def test_an_engine_that_began_again_has_an_empty_cache() -> None:
    async with bench() as one:
        await one.read()
        await one.read(PAGE.replace(b"1.7e+09", b"1.8e+09"))
        assert one.cleared == [CacheCleared(b"tiny-mixed-0.g1")]
        await one.read(PAGE.replace(b"1.7e+09", b"1.8e+09"))
        assert len(one.cleared) == one.telemetry.restarts == 1


@pytest.mark.parametrize(
    ("status", "page"),
    [(b"200 OK", b"nothing"), (b"404 Not Found", PAGE), (b"200 OK", b"x" * (probe.MAX_RESPONSE_BYTES + 1))],
    ids=["no figures", "no page", "too long"],
)
async def test_what_cannot_be_read_keeps_the_last_reading(status: bytes, page: bytes) -> None:
    async with bench() as one:
        await one.read()
        one.engine.status = status
        await one.read(page)
        assert one.telemetry.failures == one.source.failures == 1
        assert one.source.page == READ
        assert len(one.heard) == 1


async def test_an_engine_that_does_not_answer_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "TIMEOUT_S", 0.05)
    async with bench() as one:
        one.engine.silent = True
        await one.read()
        assert one.telemetry.failures == 1
        one.engine.silent = False
        await one.read()
        assert one.source.failures == 0


async def test_intervals_follow_the_work() -> None:
    idle = READ._replace(running=0, waiting=0)
    source = Source("127.0.0.1", 1)
    interval = telemetry._interval_s
    assert interval(source, 0) == BUSY_INTERVAL_S
    source.page = idle
    assert interval(source, 0) == IDLE_INTERVAL_S
    assert interval(source, 1) == BUSY_INTERVAL_S
    source.page = READ
    assert interval(source, 0) == BUSY_INTERVAL_S
    source.failures = 3
    assert interval(source, 1) == 8 * BUSY_INTERVAL_S
    source.failures = 1_000
    assert interval(source, 1) == FAILED_INTERVAL_S


async def test_all_readings_together_are_bounded() -> None:
    """A thousand busy replicas are not read a thousand times a second."""
    started: list[str] = []
    loads = [Load(f"r-{i}.g1", f"r-{i}", "m", "p", "ready", 1, 0, -1.0) for i in range(1_000)]
    one = EngineTelemetry(lambda *_: None, lambda *_: None, lambda _: loads, lambda: 0.0)
    one.sources = {load.server: Source("127.0.0.1", 9) for load in loads}

    async def read(server: str, source: Source) -> None:
        source.tried_at_s = asyncio.get_running_loop().time()
        started.append(server)

    one._read = read  # type: ignore[method-assign]
    for _ in range(10):
        one.round(2.0)
        await asyncio.sleep(0)
    assert len(started) <= telemetry.MAX_READS_PER_S * 10
    assert len(set(started)) == len(started), "nobody is read twice before all were read once"


async def test_only_replicas_that_answer_are_read_and_those_that_stay_keep_their_readings() -> None:
    async with bench() as one:
        await one.read()
        one.install()
        assert one.source.page == READ
        one.topology.replicas[0].state = REPLICA_STATE_STARTING
        one.install()
        assert one.telemetry.sources == {}
        one.telemetry.round(1.0)
        assert one.engine.reads == 1
