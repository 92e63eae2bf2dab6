"""The results as Markdown and JSON."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.policies import grid, verdict
from benchmarks.policies.contenders import SUBJECT, Contender
from benchmarks.policies.grid import Point
from benchmarks.policies.measure import Result
from benchmarks.policies.verdict import Goal, Held, Table
from controlplane.simulation.profile import G8B
from controlplane.simulation.routed import Delays
from controlplane.simulation.run import WARM_UP
from controlplane.simulation.study import ORACLE


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report is made from. ``swept`` are the points of the sweeps."""

    points: tuple[Point, ...]
    swept: tuple[Point, ...]
    contenders: tuple[Contender, ...]
    results: tuple[Result, ...]
    about: dict[str, Any]

    @property
    def found(self) -> Table:
        """Return the results by point and contender."""
        return verdict.table(self.results)

    @property
    def goals(self) -> list[Goal]:
        """Return the goals that can be judged."""
        return verdict.goals(self.points, self.contenders, self.found)

    @property
    def held(self) -> list[Held]:
        """Return the loads that contenders hold, for the sweeps that were run."""
        swept = {point.workload for point in self.swept}
        return [
            held
            for sweep in grid.SWEEPS
            if sweep.workload in swept
            for held in verdict.held(sweep, self.contenders, self.found)
        ]


def about(trace: Path | None, seed: int, quick: bool) -> dict[str, Any]:
    """Return what was held fixed."""
    told = {
        "engine": asdict(G8B),
        "delays": asdict(Delays()),
        "warm_up": WARM_UP,
        "seed": seed,
        "quick": quick,
        "python": platform.python_version(),
        "fitted_on": [point.name for point in grid.POINTS if point.fitted],
        "held_out": [point.name for point in grid.POINTS if not point.fitted],
    }
    if trace is not None:
        told["trace"] = {"name": trace.name, "sha256": sha256(trace.read_bytes()).hexdigest()}
    return told


def as_json(report: Report) -> dict[str, Any]:
    """Return the whole report for programs."""
    return {
        "about": report.about,
        "results": [result.plain() for result in report.results],
        "goals": [{**asdict(goal), "reached": goal.reached} for goal in report.goals],
        "held": [asdict(held) for held in report.held],
    }


def markdown(report: Report) -> str:
    """Return the whole report for people."""
    parts = [_head(report), _goals(report), _ahead(report), _held(report)]
    parts += [_point(report, point) for point in (*report.points, *report.swept)]
    return "\n".join(part for part in parts if part)


def _head(report: Report) -> str:
    fixed = report.about
    fitted = ", ".join(point.name for point in report.points if point.fitted) or "none"
    rest = ", ".join(point.name for point in report.points if not point.fitted) or "none"
    trace = fixed.get("trace")
    lines = [
        "# Routing policies in simulation",
        "",
        "Made by `python -m benchmarks.policies`; docs/simulation.md says what is modelled. The engine's constants are",
        "assumed (an 8B model on one large GPU): ratios between policies count, not seconds.",
        "",
        f"- A point is workload, load for each {grid.UNIT_REPLICAS} replicas, and replicas (n). Loads: speed-up of the "
        "conversation trace, requests a second of shared prefixes, agents in a closed loop.",
        f"- **The weights of `{SUBJECT}` were fixed on these points: {fitted}. Not looked at: {rest}.**",
        f"- Seed {fixed['seed']}; the first {fixed['warm_up']:.0%} of the time is not measured"
        + ("; a quick run: short workloads, only good for trying the benchmark." if fixed["quick"] else "."),
        "- Agents wait for their answers, so each policy has its own number of requests there: compare req/s too.",
    ]
    tuned = [contender for contender in report.contenders if contender.variant]
    lines += [
        f"- `{contender.name}`: " + ", ".join(f"{name} {value:g}" for name, value in contender.parameters.items()) + "."
        for contender in tuned
    ]
    if trace:
        lines.append(f"- Trace: {trace['name']}, sha256 {trace['sha256']}.")
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---" if not at else "---:" for at in range(len(head))) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _goals(report: Report) -> str:
    goals = report.goals
    if not goals:
        return ""
    missed = sum(not goal.reached for goal in goals)
    rows = [
        (
            goal.point,
            goal.text,
            goal.against,
            f"{goal.ratio:.2f}",
            f"{goal.at_most:.2f}",
            "yes" if goal.reached else "**no**",
        )
        for goal in goals
    ]
    return (
        f"## Goals: {len(goals) - missed} of {len(goals)} reached\n\nMean TTFT of `{SUBJECT}` over that of another.\n\n"
        + _table(("point", "over", "which is", "ratio", "at most", "reached"), rows)
    )


def _ahead(report: Report) -> str:
    rows = [
        (point, f"`{name}`", f"{ratio:.3f}")
        for point, name, ratio in verdict.ahead((*report.points, *report.swept), report.contenders, report.found)
    ]
    head = f"## Where another policy is ahead of `{SUBJECT}`\n\n"
    return head + (_table(("point", "policy", f"its mean TTFT over {SUBJECT}'s"), rows) if rows else "Nowhere.\n")


def _held(report: Report) -> str:
    held = report.held
    if not held:
        return ""
    by = {(each.workload, each.contender): each.load for each in held}
    sweeps = [sweep for sweep in grid.SWEEPS if any(each.workload == sweep.workload for each in held)]
    rows = []
    for contender in report.contenders:
        loads = [by.get((sweep.workload, contender.name), 0.0) for sweep in sweeps]
        least = [sweep.loads[0] for sweep in sweeps]
        rows.append(
            [
                f"`{contender.name}`",
                *(f"{load:g}" if load else f"<{low:g}" for load, low in zip(loads, least, strict=True)),
            ]
        )
    told = "\n".join(f"- {sweep.workload} ({sweep.unit}): {sweep.limits}" for sweep in sweeps)
    return (
        f"## Load held within limits, {grid.UNIT_REPLICAS} replicas\n\nThe largest load of the sweep up to which all "
        f"hold:\n\n{told}\n\n" + _table(("policy", *(f"{sweep.workload}, {sweep.unit}" for sweep in sweeps)), rows)
    )


def _point(report: Report, point: Point) -> str:
    found = report.found
    oracle = found.get((point.name, ORACLE))
    rows = []
    for contender in report.contenders:
        result = found.get((point.name, contender.name))
        if result is None:
            continue
        over = f"{result.ttft_mean_s / oracle.ttft_mean_s:.2f}x" if oracle else "-"
        rows.append(
            (
                f"`{result.contender}`",
                over,
                f"{result.ttft_mean_s:.3f}",
                f"{result.ttft_p50_s:.3f}",
                f"{result.ttft_p99_s:.2f}",
                f"{result.tpot_mean_s * 1e3:.1f}",
                f"{result.end_to_end_mean_s:.2f}",
                f"{result.hit_rate * 100:.1f}",
                f"{result.success_rate * 100:.2f}",
                f"{result.imbalance:.2f}",
                f"{result.requests_per_s:.2f}",
            )
        )
    if not rows:
        return ""
    head = (
        "policy",
        "over oracle",
        "TTFT mean s",
        "p50",
        "p99",
        "TPOT ms",
        "e2e s",
        "hit %",
        "ok %",
        "max/mean",
        "req/s",
    )
    return f"## {point.name}\n\n" + _table(head, rows)
