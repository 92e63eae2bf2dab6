"""From runs to figures: per-round values of each metric, medians, and ratios within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cells import BASE_REQUEST, REQUESTS, SATURATION, STREAM
from benchmarks.measure import Run

OURS = "slipstream"
BASELINE = "direct"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of one value per round."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of ``values``; None when there are none."""
    found = sorted(values)
    if not found:
        return None
    return Spread(statistics.median(found), found[0], found[-1], len(found))


#: round -> value
Series = dict[int, float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a system; ``lower_is_better`` says how to read a ratio."""

    name: str
    unit: str
    values: dict[str, Series]  # system -> round -> value
    lower_is_better: bool = True

    def of(self, system: str) -> Spread | None:
        """Return the spread of one system over its rounds."""
        return spread(self.values.get(system, {}).values())

    def ratio(self, peer: str, ours: str = OURS) -> Spread | None:
        """Return the spread of ours / peer's within the same round."""
        mine, theirs = self.values.get(ours, {}), self.values.get(peer, {})
        return spread(mine[r] / theirs[r] for r in mine if theirs.get(r))


class Runs:
    """The accepted runs, by cell, system and round."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._found = {(r.cell, r.system, r.round): r for r in runs if not r.refused}
        self.systems = list(dict.fromkeys(r.system for r in runs))
        self.rounds = sorted({r.round for r in runs})

    def series(self, cell: str, value: Callable[[Run], float | None]) -> dict[str, Series]:
        """Return ``value`` of each run of ``cell``; None leaves the run out."""
        found: dict[str, Series] = {}
        for (name, system, number), run in self._found.items():
            if name == cell and (v := value(run)) is not None:
                found.setdefault(system, {})[number] = v
        return found

    def get(self, cell: str, system: str, number: int) -> Run | None:
        """Return one run, None when it was refused or never was."""
        return self._found.get((cell, system, number))


def _without(series: Mapping[str, Series], *systems: str) -> dict[str, Series]:
    return {system: values for system, values in series.items() if system not in systems}


def _added(series: Mapping[str, Series]) -> dict[str, Series]:
    """Return what each system adds to the baseline of its own round."""
    base = series.get(BASELINE, {})
    others = _without(series, BASELINE)
    return {s: {r: v - base[r] for r, v in values.items() if r in base} for s, values in others.items()}


def _token_cost(runs: Runs) -> dict[str, Series]:
    def cost(run: Run) -> float | None:
        base = runs.get(BASE_REQUEST.name, run.system, run.round)
        if base is None or not run.counted.tokens:
            return None
        cpu_us = 1e6 * sum(run.ingress_cpu_s.values())
        return (cpu_us - run.counted.completed * base.cpu_us_per_request) / run.counted.tokens

    return _without(runs.series(STREAM.name, cost), BASELINE)


def metrics(all_runs: Sequence[Run]) -> list[Metric]:
    """Return every metric that the runs give, in the order of the report."""
    runs = Runs(all_runs)
    found = [
        Metric(f"CPU per request, {cell.name}", "us", runs.series(cell.name, lambda r: r.cpu_us_per_request))
        for cell in REQUESTS
    ]
    found.append(Metric("CPU per token", "us", _token_cost(runs)))
    ttft_p50 = runs.series(STREAM.name, lambda r: r.report.ttft.p50)
    ttft_p99 = runs.series(STREAM.name, lambda r: r.report.ttft.p99)
    found += [
        Metric("added TTFT p50", "ms", _added(ttft_p50)),
        Metric("added TTFT p99", "ms", _added(ttft_p99)),
        Metric("TTFT p50", "ms", ttft_p50),
        Metric("TTFT p99", "ms", ttft_p99),
        Metric("TPOT p50", "ms", runs.series(STREAM.name, lambda r: r.report.tpot.p50)),
        Metric("TPOT p99", "ms", runs.series(STREAM.name, lambda r: r.report.tpot.p99)),
        Metric("requests/s at saturation", "1/s", runs.series(SATURATION.name, lambda r: r.requests_per_s), False),
    ]
    return [m for m in found if m.values]


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit that Slipstream is to keep: on a ratio when there is a ``peer``, else on the figure itself."""

    metric: str
    peer: str
    limit: float


GOALS = (
    *(Goal(f"CPU per request, {cell.name}", "vllm-router-rr", 1.0) for cell in REQUESTS),
    *(Goal(f"CPU per request, {cell.name}", "vllm-router-ca", 0.10) for cell in REQUESTS),
    Goal("CPU per token", "haproxy", 1.25),
    Goal("CPU per token", "vllm-router-rr", 0.75),
    Goal("added TTFT p50", "", 1.0),
    Goal("added TTFT p99", "", 4.0),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was measured; ``measured`` is None when no round gives it."""

    goal: Goal
    measured: Spread | None

    @property
    def met(self) -> bool:
        """Whether the median keeps the limit."""
        return self.measured is not None and self.measured.median <= self.goal.limit


def verdicts(found: Sequence[Metric]) -> list[Verdict]:
    """Judge every goal whose metric was measured."""
    by_name = {m.name: m for m in found}
    judged = []
    for goal in GOALS:
        if (metric := by_name.get(goal.metric)) is not None:
            judged.append(Verdict(goal, metric.ratio(goal.peer) if goal.peer else metric.of(OURS)))
    return judged
