"""The runs, in two processes, each with the trace read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.policies import grid
from benchmarks.policies.contenders import Contender
from benchmarks.policies.grid import Point
from controlplane.simulation import trace
from controlplane.simulation.outcome import Outcome
from controlplane.simulation.trace import Row

PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Result:
    """One contender at one point. Seconds; rates from 0 to 1; ``cpu_s`` is what the simulation took."""

    point: str
    contender: str
    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    end_to_end_mean_s: float
    hit_rate: float
    success_rate: float
    imbalance: float
    requests_per_s: float
    cpu_s: float
    #: Whether the limits of the point's workload were held.
    held: bool

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


_rows: tuple[Row, ...] = ()


def _begin(path: Path | None) -> None:
    global _rows  # noqa: PLW0603 - a worker process's own, read once
    _rows = tuple(trace.read(path)) if path is not None else ()


def run(point: Point, contender: Contender, seed: int, quick: bool, rows: Sequence[Row] | None = None) -> Result:
    """Run one contender at one point."""
    started = time.process_time()
    fixed = grid.study(point, tuple(_rows if rows is None else rows), seed, quick)
    outcome = replace(fixed, parameters={contender.policy: contender.parameters}).run(contender.policy)
    return _result(point, contender, outcome, time.process_time() - started)


def _result(point: Point, contender: Contender, outcome: Outcome, cpu_s: float) -> Result:
    sweep = next(sweep for sweep in grid.SWEEPS if sweep.workload == point.workload)
    return Result(
        point=point.name,
        contender=contender.name,
        requests=outcome.requests,
        ttft_mean_s=outcome.ttft_mean_s,
        ttft_p50_s=outcome.ttft_p50_s,
        ttft_p99_s=outcome.ttft_p99_s,
        tpot_mean_s=outcome.tpot_mean_s,
        end_to_end_mean_s=outcome.end_to_end_mean_s,
        hit_rate=outcome.hit_rate,
        success_rate=outcome.success_rate,
        imbalance=outcome.imbalance,
        requests_per_s=outcome.requests_per_s,
        cpu_s=cpu_s,
        held=outcome.success_rate >= grid.MIN_SUCCESS and sweep.held(outcome),
    )


def run_all(
    points: Sequence[Point],
    contenders: Sequence[Contender],
    path: Path | None,
    seed: int,
    quick: bool,
    told: Callable[[Result, int, int], None],
) -> list[Result]:
    """Run all contenders at all points, the longest first; ``told`` hears each result, how many are done, and of how
    many.
    """
    order = sorted(points, key=lambda point: -point.replicas * (point.workload == grid.CONVERSATION) - point.replicas)
    done: list[Result] = []
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), _begin, (path,)) as pool:
        futures = [pool.submit(run, point, contender, seed, quick) for point in order for contender in contenders]
        for future in as_completed(futures):
            done.append(future.result())
            told(done[-1], len(done), len(futures))
    place = {
        (point.name, contender.name): (i, j) for i, point in enumerate(points) for j, contender in enumerate(contenders)
    }
    return sorted(done, key=lambda result: place[result.point, result.contender])
