"""``python -m benchmarks.run``: the interleaved comparison; docs/benchmarks.md tells how to read it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cells, machine, report
from benchmarks.measure import Bench, Idle, Run, measure, measure_idle
from benchmarks.ports import free_ports
from benchmarks.process import Cores, DidNotStart
from benchmarks.programs import program
from benchmarks.replica import BenchReplica
from benchmarks.summary import BASELINE, OURS
from benchmarks.systems import BY_NAME, System, Unavailable
from benchmarks.systems.base import Facts

RESULTS = Path(__file__).parent / "results"
REPLICAS = 4
ROUNDS, QUICK_ROUNDS = 5, 2
#: Health checks, first reports and the Python processes' own start are over by then.
SETTLE_S = 3.0
IDLE_S = 5.0
#: Of everything in the benchmark, where it is allowed: other programs of the machine then disturb less.
NICE = -10
#: A refused run is repeated at once, at most this often.
MAX_REPEATS = 2
#: Cores that other programs may keep busy during a run.
MAX_FOREIGN_CORES = 0.5


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="few cells, two rounds: a look, not a result")
    parser.add_argument(
        "--systems", nargs="+", choices=BY_NAME, default=list(BY_NAME), metavar="NAME", help=", ".join(BY_NAME)
    )
    parser.add_argument("--cells", nargs="+", metavar="TEXT", help="only cells whose name contains one of these")
    parser.add_argument("--name", default="latest", help="of the files below the output folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder")
    parser.add_argument("--unpinned", action="store_true", help="let every process run on every core")
    parser.add_argument(
        "--max-foreign",
        type=float,
        default=MAX_FOREIGN_CORES,
        metavar="CORES",
        help=f"refuse a run while other programs keep more busy; default {MAX_FOREIGN_CORES:g}",
    )
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def share_cores(unpinned: bool) -> tuple[Cores, Cores]:
    """Return the cores of the ingress (the first) and of load client and replica (the others)."""
    cores = sorted(os.sched_getaffinity(0))
    if unpinned or len(cores) == 1:
        return frozenset(cores), frozenset(cores)
    return frozenset(cores[:1]), frozenset(cores[1:])


def chosen_cells(quick: bool, wanted: Sequence[str] | None) -> list[cells.Cell]:
    """Return the cells to run, in order."""
    found = cells.QUICK if quick else cells.FULL
    return [c for c in found if not wanted or any(text in c.name for text in wanted)]


class Comparison:
    """The systems that started, and everything measured on them."""

    def __init__(self, bench: Bench, names: Sequence[str], stack: contextlib.ExitStack) -> None:
        self.bench = bench
        self.systems: list[System] = []
        self.facts: dict[str, Facts] = {}
        self.missing: dict[str, str] = {}
        for name in BY_NAME:
            if name in names:
                self._start(BY_NAME[name](), stack)

    def _start(self, system: System, stack: contextlib.ExitStack) -> None:
        stack.callback(system.stop)
        try:
            facts = system.start(self.bench.replica.ports, self.bench.ingress_cores, self.bench.folder)
        except (Unavailable, DidNotStart) as error:
            system.stop()
            self.missing[system.name] = str(error)
            print(f"not measured: {system.name}: {error}", file=sys.stderr)
            return
        self.systems.append(system)
        self.facts[system.name] = facts

    def idle(self) -> list[Idle]:
        """Watch Slipstream while nobody asks."""
        ours = [s for s in self.systems if s.name == OURS]
        return measure_idle(ours[0], IDLE_S) if ours else []

    def run(self, rounds: int, wanted: Sequence[cells.Cell]) -> list[Run]:
        """Run every cell on every system in turn, ``rounds`` times; each round starts with another system."""
        runs: list[Run] = []
        for number in range(rounds):
            for cell in wanted:
                first = number % len(self.systems)
                for system in self.systems[first:] + self.systems[:first]:
                    if cell.skips_direct and system.name == BASELINE:
                        continue
                    runs += self._accepted(system, cell, number)
        return runs

    def _accepted(self, system: System, cell: cells.Cell, number: int) -> list[Run]:
        """Return the runs that it took to get one that is not refused, that one last."""
        runs: list[Run] = []
        while len(runs) <= MAX_REPEATS and (not runs or runs[-1].refused):
            runs.append(measure(self.bench, system, cell, number))
            print(f"round {number + 1}  {_line(runs[-1])}", file=sys.stderr)
        return runs


def _line(run: Run) -> str:
    told = f"{run.system:<15} {run.cell:<24} {run.requests_per_s:>9,.0f} req/s {run.cpu_us_per_request:>8,.1f} us/req"
    latency = f"  ttft {run.report.ttft.p50:.2f}/{run.report.ttft.p99:.2f} ms"
    failed = f"  failed {run.report.failures}" if run.report.failed else ""
    return told + latency + failed + (f"  REFUSED: {run.refused}" if run.refused else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write its results; return the exit status."""
    options = arguments(argv)
    wanted = chosen_cells(options.quick, options.cells)
    if not wanted:
        print("no cell has such a name", file=sys.stderr)
        return 2
    about = machine.facts()
    ingress_cores, driver_cores = share_cores(options.unpinned)
    os.sched_setaffinity(0, driver_cores)  # the harness itself stays off the ingress's core
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)  # everything that it starts inherits it
    program("replica"), program("load")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipstream-bench-logs-")))
        replica = BenchReplica(free_ports(REPLICAS), driver_cores, folder)
        stack.callback(replica.stop)
        bench = Bench(replica, ingress_cores, driver_cores, folder, options.max_foreign)
        comparison = Comparison(bench, options.systems, stack)
        if not comparison.systems:
            return 1
        time.sleep(SETTLE_S)
        idle = comparison.idle()
        runs = comparison.run(options.rounds, wanted)
    told = {"rounds": options.rounds, "quick": options.quick, "pinned": not options.unpinned, "replicas": REPLICAS}
    results = report.Results(about, told, comparison.facts, comparison.missing, runs, idle)
    for path in report.write(results, options.out, options.name):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
