"""What is run: the points that are compared, and the sweeps that find the load a policy holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controlplane.simulation.outcome import Outcome
from controlplane.simulation.profile import G8B
from controlplane.simulation.replayed import Replayed
from controlplane.simulation.study import Study
from controlplane.simulation.synthetic import Agentic, SharedPrefix
from controlplane.simulation.trace import Row
from controlplane.simulation.workload import Workload

CONVERSATION = "conversation"
SHARED_PREFIX = "shared_prefix"
AGENTIC = "agentic"

#: Loads are given for this many replicas; larger fleets get as many times the load.
UNIT_REPLICAS = 8
#: Simulated seconds of requests that are made up.
LENGTH_S = 360.0
QUICK_LENGTH_S = 60.0
#: Part of the trace that a quick run replays.
QUICK_PART = 0.1
SEED = 1


@dataclass(frozen=True, slots=True)
class Point:
    """A workload at a load: speed-up of the trace, or requests a second, or users, for each eight replicas."""

    workload: str
    load: float
    replicas: int

    @property
    def name(self) -> str:
        """Name in reports and on the command line."""
        return f"{self.workload}-{self.load:g}-n{self.replicas}"

    @property
    def fitted(self) -> bool:
        """Whether the weights of ``cost`` were chosen with this point in view."""
        return self.replicas == UNIT_REPLICAS


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rising loads at eight replicas, and the limits that a policy holds there. Seconds."""

    workload: str
    loads: tuple[float, ...]
    unit: str
    limits: str
    held: Callable[[Outcome], bool]

    def points(self) -> tuple[Point, ...]:
        """Return the sweep's points."""
        return tuple(Point(self.workload, load, UNIT_REPLICAS) for load in self.loads)


#: A run in which more requests than this fail holds no limit: those that are refused are not slow.
MIN_SUCCESS = 0.999

POINTS = tuple(
    Point(workload, load, replicas)
    for replicas in (8, 64)
    for workload, loads in ((CONVERSATION, (1.5, 2)), (SHARED_PREFIX, (6, 12)), (AGENTIC, (64, 128)))
    for load in loads
)

SWEEPS = (
    Sweep(
        CONVERSATION,
        (1, 1.25, 1.5, 1.75, 2, 2.2, 2.4),
        "x the trace",
        "mean TTFT at most 1.6 s, mean TPOT at most 50 ms",
        lambda outcome: outcome.ttft_mean_s <= 1.6 and outcome.tpot_mean_s <= 0.050,
    ),
    Sweep(
        SHARED_PREFIX,
        (8, 10, 11, 12, 13, 14, 15, 16),
        "req/s",
        "p99 TTFT at most 1 s",
        lambda outcome: outcome.ttft_p99_s <= 1.0,
    ),
    Sweep(
        AGENTIC,
        (48, 64, 96, 128, 160, 224),
        "users",
        "p99 TTFT at most 2 s, mean TPOT at most 50 ms",
        lambda outcome: outcome.ttft_p99_s <= 2.0 and outcome.tpot_mean_s <= 0.050,
    ),
)


def study(point: Point, rows: tuple[Row, ...], seed: int, quick: bool) -> Study:
    """Return what a point holds fixed. ``rows`` are the conversation trace's."""
    return Study(workload=_workload(point, rows, seed, quick), engines=(G8B,) * point.replicas, seed=seed)


def _workload(point: Point, rows: tuple[Row, ...], seed: int, quick: bool) -> Callable[[], Workload]:
    times = point.replicas / UNIT_REPLICAS
    length_s = QUICK_LENGTH_S if quick else LENGTH_S
    if point.workload == CONVERSATION:
        replayed = Replayed(rows[: int(len(rows) * QUICK_PART)] if quick else rows, point.load, max(1, round(times)))
        return lambda: replayed
    if point.workload == SHARED_PREFIX:
        return lambda: SharedPrefix(point.load * times, length_s, seed)
    return lambda: Agentic(round(point.load * times), length_s, seed)
