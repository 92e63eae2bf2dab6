"""One bench replica for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.replica import BenchReplica
from tests.ports import lease

CORES = frozenset(os.sched_getaffinity(0))


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[BenchReplica]:
    """Four replicas that answer at once."""
    running = BenchReplica(lease(4), CORES, tmp_path)
    yield running
    running.stop()
