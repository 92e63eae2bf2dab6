"""What the results say of ``cost``: each goal, and each point where another policy is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.policies import grid
from benchmarks.policies.contenders import SUBJECT, Contender
from benchmarks.policies.grid import Point, Sweep
from benchmarks.policies.measure import Result
from controlplane.simulation.study import ORACLE

#: Mean TTFT of ``cost`` over that of the oracle, of the best peer as published (conversation x2), of the best of all.
MAX_OVER_ORACLE = 1.10
MAX_OVER_PUBLISHED = 0.85
MAX_OVER_PEERS = 1.15
HARD_POINT = (grid.CONVERSATION, 2.0)


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal at one point: a ratio, and what it may be at most. ``reached`` when it is not more."""

    text: str
    point: str
    ratio: float
    at_most: float
    against: str

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.ratio <= self.at_most


@dataclass(frozen=True, slots=True)
class Held:
    """The largest load of a sweep at which a contender holds the limits; 0: at none."""

    workload: str
    contender: str
    load: float


Table = Mapping[tuple[str, str], Result]


def table(results: Sequence[Result]) -> Table:
    """Return results by point and contender."""
    return {(result.point, result.contender): result for result in results}


def goals(points: Sequence[Point], contenders: Sequence[Contender], found: Table) -> list[Goal]:
    """Return all goals that the results allow to judge."""
    against_oracle = [each for each in contenders if each.policy == ORACLE]
    against_published = [each for each in contenders if each.published]
    against_peers = [each for each in contenders if each.peer]
    judged = []
    for point in points:
        wanted = [
            ("the oracle", MAX_OVER_ORACLE, against_oracle),
            ("the best of all peers", MAX_OVER_PEERS, against_peers),
        ]
        if (point.workload, point.load) == HARD_POINT:
            wanted.append(("the best peer as published", MAX_OVER_PUBLISHED, against_published))
        for text, at_most, others in wanted:
            goal = _goal(point, text, at_most, others, found)
            if goal is not None:
                judged.append(goal)
    return judged


def _goal(point: Point, text: str, at_most: float, others: Sequence[Contender], found: Table) -> Goal | None:
    ours = found.get((point.name, SUBJECT))
    there = [result for other in others if (result := found.get((point.name, other.name))) is not None]
    if ours is None or not there:
        return None
    best = min(there, key=lambda result: result.ttft_mean_s)
    return Goal(text, point.name, ours.ttft_mean_s / best.ttft_mean_s, at_most, best.contender)


def held(sweep: Sweep, contenders: Sequence[Contender], found: Table) -> list[Held]:
    """Return the largest load that each contender holds without having failed at a lower one that was run."""
    told = []
    for contender in contenders:
        most = 0.0
        for point in sweep.points():
            result = found.get((point.name, contender.name))
            if result is None:
                continue
            if not result.held:
                break
            most = point.load
        told.append(Held(sweep.workload, contender.name, most))
    return told


def ahead(points: Sequence[Point], contenders: Sequence[Contender], found: Table) -> list[tuple[str, str, float]]:
    """Return (point, contender, its mean TTFT over ours) wherever a policy that is no bound is ahead of ours."""
    return [
        (point.name, other.name, result.ttft_mean_s / ours.ttft_mean_s)
        for point in points
        if (ours := found.get((point.name, SUBJECT))) is not None
        for other in contenders
        if not other.bound
        and (result := found.get((point.name, other.name))) is not None
        and result.ttft_mean_s < ours.ttft_mean_s
    ]
