import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load import Load, LoadPlan, LoadReport
from benchmarks.replica import BenchReplica
from tests.benchmarks.conftest import CORES
from tests.ports import lease

STREAMS = LoadPlan(
    connections=16, duration_ms=1_500, warmup_ms=500, stream=True, max_tokens=20, sessions=4, ramp_ms=100
)


def run(replica: BenchReplica, plan: LoadPlan, folder: Path) -> LoadReport:
    return Load(plan, replica.ports, CORES, folder).finish()


def test_both_sides_count_the_same_streams_and_tokens(replica: BenchReplica, tmp_path: Path) -> None:
    replica.set_times(first_token_ms=5, gap_ms=2)
    report = run(replica, STREAMS, tmp_path)
    stats = replica.stats()
    assert report.failed == report.unfinished == 0
    assert report.sent == report.done == stats.requests == stats.completed > 0
    assert report.tokens == stats.tokens == 20 * report.done
    assert stats.aborted == stats.renders == stats.tokenizes == 0
    assert report.ttft.p50 >= 5.0
    assert report.tpot.p50 >= 1.9
    assert 0 < report.window_tokens < report.tokens


@pytest.mark.parametrize("body_bytes", [200, 32_768, 102_400])
@pytest.mark.parametrize("model_first", [False, True])
def test_whole_answers_of_every_body(replica: BenchReplica, tmp_path: Path, body_bytes: int, model_first: bool) -> None:
    plan = LoadPlan(4, duration_ms=150, warmup_ms=0, body_bytes=body_bytes, model_first=model_first, sessions=8)
    report = run(replica, plan, tmp_path)
    stats = replica.stats()
    assert report.failed == 0
    assert report.done == report.tokens == stats.requests == stats.tokens > 0
    assert stats.body_bytes == body_bytes * stats.requests


def test_growing_sessions_are_shorter_on_the_whole(replica: BenchReplica, tmp_path: Path) -> None:
    plan = LoadPlan(4, duration_ms=150, warmup_ms=0, body_bytes=32_768, sessions=8, turns=5, shared_bytes=4_096)
    report = run(replica, plan, tmp_path)
    stats = replica.stats()
    assert report.failed == 0
    assert 4_096 * stats.requests < stats.body_bytes < 32_768 * stats.requests


def test_open_loop_keeps_its_rate(replica: BenchReplica, tmp_path: Path) -> None:
    plan = LoadPlan(connections=32, duration_ms=1_000, warmup_ms=0, rate=500.0)
    report = run(replica, plan, tmp_path)
    assert report.failed == 0
    assert 350 < report.done < 650  # six standard deviations of 500 Poisson arrivals


def test_refused_connections_are_failures_by_kind(replica: BenchReplica, tmp_path: Path) -> None:
    plan = LoadPlan(connections=2, duration_ms=200, warmup_ms=0)
    report = Load(plan, lease(1), CORES, tmp_path).finish()
    assert report.done == 0
    assert report.failed == report.failures["connect"] > 0


def test_a_replica_that_dies_truncates_its_streams(replica: BenchReplica, tmp_path: Path) -> None:
    replica.set_times(first_token_ms=1, gap_ms=20)
    load = Load(replace(STREAMS, max_tokens=1_000, duration_ms=500, ramp_ms=0), replica.ports, CORES, tmp_path)
    deadline = time.monotonic() + 10
    while replica.stats().tokens < 16 * 4:
        assert time.monotonic() < deadline
    replica.stop()
    report = load.finish()
    assert report.done == 0
    assert report.failures["truncated"] == 16
