"""One run: one cell on one system, and the rules by which a run is refused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import cpu
from benchmarks.cells import Cell
from benchmarks.load import Load, LoadReport
from benchmarks.process import Cores
from benchmarks.replica import BenchReplica, ReplicaStats
from benchmarks.systems import System

#: Share of its cores from which on a part counts as saturated.
SATURATED = 0.9
#: Share of tokens that may leave the replica more than 2 ms late.
LATE_SHARE = 0.01
#: The last reading is taken this long before the load ends.
EDGE_S = 0.02


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share: the replica, and the cores of the ingress and of its drivers (load client, replica)."""

    replica: BenchReplica
    ingress_cores: Cores
    driver_cores: Cores
    folder: Path
    max_foreign_cores: float


@dataclass(frozen=True, slots=True)
class Run:
    """What one run gave. CPU in seconds within ``window_s``; requests and tokens as the replica counted them."""

    round: int
    system: str
    cell: str
    window_s: float
    ingress_cpu_s: dict[str, float]
    load_cpu_s: float
    replica_cpu_s: float
    foreign_cpu_s: float
    counted: ReplicaStats
    report: LoadReport
    refused: str = field(default="")

    @property
    def cpu_us_per_request(self) -> float:
        """Microseconds of all ingress processes for each request that the replica completed."""
        return 1e6 * sum(self.ingress_cpu_s.values()) / max(1, self.counted.completed)

    @property
    def requests_per_s(self) -> float:
        """Answers that the load client got in full, each second."""
        return self.report.window_done / self.report.window_s


def refusal(
    ingress_share: float,
    load_share: float,
    replica_share: float,
    driver_cores: int,
    counted: ReplicaStats,
    foreign_cores: float = 0.0,
    max_foreign_cores: float = 0.0,
) -> str:
    """Return why a run says nothing about the ingress, or "".

    Shares are CPU seconds by wall seconds: of one core for the drivers, of all its cores for the ingress.
    """
    if foreign_cores > max_foreign_cores:
        return f"something else kept {foreign_cores:.1f} cores busy"
    if counted.tokens and counted.late_tokens / counted.tokens > LATE_SHARE:
        percent = 100 * counted.late_tokens / counted.tokens
        return f"the replica sent {percent:.1f} % of its tokens more than 2 ms late"
    if ingress_share >= SATURATED:
        return ""
    if load_share > SATURATED:
        return f"bound by the load client ({load_share:.0%} of a core, ingress {ingress_share:.0%})"
    if replica_share > SATURATED:
        return f"bound by the replica ({replica_share:.0%} of a core, ingress {ingress_share:.0%})"
    if load_share + replica_share > SATURATED * driver_cores:
        return f"bound by load client and replica together (ingress {ingress_share:.0%})"
    return ""


@dataclass(frozen=True, slots=True)
class _Edge:
    """Everything that is read at one end of the measured time."""

    at_s: float
    counted: ReplicaStats
    ingress: Mapping[str, float]
    load_s: float
    replica_s: float
    others_s: float
    machine_s: float


def _edge(bench: Bench, load: Load, processes: Mapping[str, tuple[int, ...]], others: Sequence[int]) -> _Edge:
    counted = bench.replica.stats()
    return _Edge(
        at_s=time.monotonic(),
        counted=counted,
        ingress={label: cpu.cpu_s(pids) for label, pids in processes.items()},
        load_s=cpu.process_cpu_s(load.pid),
        replica_s=cpu.process_cpu_s(bench.replica.pid),
        others_s=cpu.cpu_s(others),
        machine_s=cpu.machine_busy_s(),
    )


def _sleep_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))


def measure(bench: Bench, system: System, cell: Cell, number: int) -> Run:
    """Run ``cell`` on ``system`` once. Raises ValueError when the load client fails."""
    bench.replica.set_times(cell.first_token_ms, cell.gap_ms)
    processes = system.ingress()
    others = [pid for pids in system.others().values() for pid in pids]
    started = time.monotonic()
    load = Load(cell.plan, system.ports, bench.driver_cores, bench.folder)
    _sleep_until(started + cell.plan.warmup_ms / 1000)
    first = _edge(bench, load, processes, others)
    _sleep_until(started + (cell.plan.warmup_ms + cell.plan.duration_ms) / 1000 - EDGE_S)
    last = _edge(bench, load, processes, others)
    report = load.finish()
    window_s = last.at_s - first.at_s
    ingress = {label: last.ingress[label] - first.ingress[label] for label in processes}
    load_s, replica_s = last.load_s - first.load_s, last.replica_s - first.replica_s
    counted = last.counted.since(first.counted)
    others_s = last.others_s - first.others_s
    foreign_s = max(0.0, last.machine_s - first.machine_s - sum(ingress.values()) - others_s - load_s - replica_s)
    refused = refusal(
        sum(ingress.values()) / window_s / len(bench.ingress_cores),
        load_s / window_s,
        replica_s / window_s,
        len(bench.driver_cores),
        counted,
        foreign_s / window_s,
        bench.max_foreign_cores,
    )
    return Run(
        round=number,
        system=system.name,
        cell=cell.name,
        window_s=window_s,
        ingress_cpu_s=ingress,
        load_cpu_s=load_s,
        replica_cpu_s=replica_s,
        foreign_cpu_s=foreign_s,
        counted=counted,
        report=report,
        refused=refused,
    )


@dataclass(frozen=True, slots=True)
class Idle:
    """What one process takes with no request in flight: share of a core, and its memory."""

    label: str
    cpu_share: float
    memory: cpu.Memory


def measure_idle(system: System, seconds: float) -> list[Idle]:
    """Watch the system's processes, ingress first, for ``seconds`` in which nobody asks anything."""
    labelled = {**system.ingress(), **system.others()}
    before = {label: cpu.cpu_s(pids) for label, pids in labelled.items()}
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    found = []
    for label, pids in labelled.items():
        each = [cpu.memory(pid) for pid in pids]
        total = cpu.Memory(sum(m.rss_bytes for m in each), sum(m.pss_bytes for m in each))
        found.append(Idle(label, (cpu.cpu_s(pids) - before[label]) / elapsed, total))
    return found
