import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cpu
from benchmarks.cells import Cell
from benchmarks.load import LoadPlan
from benchmarks.measure import Bench, measure
from benchmarks.replica import BenchReplica
from benchmarks.run import arguments, chosen_cells, share_cores
from benchmarks.systems import PlainHaproxy, Slipstream
from benchmarks.systems.slipstream import spec
from controlplane.spec import from_yaml
from tests.benchmarks.conftest import CORES

MANY_CORES = 1e9
#: Works in a thread that ends, says so, and waits.
BURN = """
import threading
worker = threading.Thread(target=lambda: sum(range(2_000_000)))
worker.start()
worker.join()
print(flush=True)
input()
"""


def test_a_run_through_haproxy_counts_its_cpu(replica: BenchReplica, tmp_path: Path) -> None:
    system = PlainHaproxy()
    try:
        facts = system.start(replica.ports, CORES, tmp_path)
        cell = Cell("short", LoadPlan(connections=8, duration_ms=500, warmup_ms=200, sessions=4))
        run = measure(Bench(replica, CORES, CORES, tmp_path, MANY_CORES), system, cell, number=0)
    finally:
        system.stop()
    assert "2.8" in facts.version
    assert run.report.failed == 0
    assert run.counted.completed > 0
    assert run.ingress_cpu_s["haproxy"] > 0
    assert 0 < run.cpu_us_per_request < 1e6
    assert run.load_cpu_s > 0
    assert run.replica_cpu_s > 0


def test_cpu_of_children_and_ended_threads_is_counted() -> None:
    child = subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in cpu.with_descendants([os.getpid()])
    assert cpu.process_cpu_s(child.pid) > 0.005
    assert cpu.memory(child.pid).rss_bytes >= cpu.memory(child.pid).pss_bytes > 1 << 20
    child.communicate(b"\n")
    assert cpu.process_cpu_s(child.pid) == 0.0
    assert cpu.memory(child.pid) == cpu.Memory(0, 0)


def test_slipstreams_spec_is_valid() -> None:
    cluster = from_yaml(spec(18_000, [18_001, 18_002], "prefix"))
    (model,) = cluster.models
    assert model.pools[0].replicas == 2
    assert model.routing.policy == "prefix"


def test_a_system_that_never_started_stops_quietly() -> None:
    Slipstream().stop()
    PlainHaproxy().stop()


def test_options_choose_cells_and_rounds() -> None:
    assert arguments([]).rounds == 5
    assert arguments(["--quick"]).rounds == 2
    assert [c.name for c in chosen_cells(False, ["100 KB"])] == ["100 KB, model last", "100 KB, model first"]
    assert chosen_cells(True, ["nothing"]) == []
    with pytest.raises(SystemExit):
        arguments(["--systems", "nginx"])


def test_ingress_gets_a_core_of_its_own() -> None:
    ingress, drivers = share_cores(unpinned=False)
    assert ingress | drivers == CORES
    assert not ingress & drivers or len(CORES) == 1
    assert share_cores(unpinned=True) == (CORES, CORES)
