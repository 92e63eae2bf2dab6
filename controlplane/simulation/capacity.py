"""How many replicas a workload needs to stay within a limit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.simulation.errors import InvalidSimulation
from controlplane.simulation.outcome import Outcome
from controlplane.simulation.study import Progress, Study

#: Fleets larger than this are not tried.
MAX_REPLICAS = 16_384
#: Part of the measured requests that must be answered whatever the limit says: a fleet that refuses is fast.
MIN_SUCCESS = 0.999

FIGURES: dict[str, Callable[[Outcome], float]] = {
    "ttft_mean": lambda outcome: outcome.ttft_mean_s,
    "ttft_p50": lambda outcome: outcome.ttft_p50_s,
    "ttft_p99": lambda outcome: outcome.ttft_p99_s,
    "tpot_mean": lambda outcome: outcome.tpot_mean_s,
    "tpot_p99": lambda outcome: outcome.tpot_p99_s,
}
_UNITS = {"s": 1.0, "ms": 1e-3}
_LIMIT = re.compile(r"([a-z0-9_]+)=([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|ms)")


@dataclass(frozen=True, slots=True)
class Limit:
    """A figure of an outcome and what it may be at most, in seconds."""

    figure: str
    at_most_s: float

    def held(self, outcome: Outcome) -> bool:
        """Whether a run stayed within the limit and answered what it was asked."""
        return outcome.success_rate >= MIN_SUCCESS and FIGURES[self.figure](outcome) <= self.at_most_s


def limit(text: str) -> Limit:
    """Read ``figure=time``, as ttft_p99=1s or tpot_mean=50ms. Raises InvalidSimulation."""
    found = _LIMIT.fullmatch(text)
    if found is None or found[1] not in FIGURES or float(found[2]) <= 0:
        raise InvalidSimulation(
            f"--find-capacity {text[:60]!r}: write FIGURE=TIME, as ttft_p99=1s or tpot_mean=50ms; "
            f"figures are {', '.join(FIGURES)}"
        )
    return Limit(found[1], float(found[2]) * _UNITS[found[3]])


@dataclass(frozen=True, slots=True)
class Capacity:
    """The fewest replicas that hold a limit, and how they did; ``replicas`` is 0 when not even the most do."""

    replicas: int
    outcome: Outcome


def find(
    study: Study, name: str, wanted: Limit, progress: Progress | None = None, most: int = MAX_REPLICAS
) -> Capacity:
    """Double the fleet until the limit holds, then halve the doubt. Each try is one run of the whole workload."""
    low, high = 0, 1
    best = study.resized(high).run(name, progress)
    while not wanted.held(best):
        if high >= most:
            return Capacity(0, best)
        low, high = high, min(most, 2 * high)
        best = study.resized(high).run(name, progress)
    while high - low > 1:
        middle = (low + high) // 2
        outcome = study.resized(middle).run(name, progress)
        if wanted.held(outcome):
            high, best = middle, outcome
        else:
            low = middle
    return Capacity(high, best)
