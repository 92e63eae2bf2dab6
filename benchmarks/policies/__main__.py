"""Compare all routing policies in simulation: ``python -m benchmarks.policies --trace FILE``.

FILE is Mooncake's conversation trace (kvcache-ai/Mooncake, FAST25-release/traces), which is not part of the project;
``SLIPSTREAM_CONVERSATION_TRACE`` may name it instead. Without it the conversation points are left out, and the report
says so. Writes policies.json, policies.md and plots to benchmarks/results, or beside ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.policies import grid, measure, plots, report
from benchmarks.policies.contenders import contenders
from benchmarks.policies.grid import Point
from benchmarks.policies.measure import Result
from controlplane.errors import ControlplaneError

TRACE_VARIABLE = "SLIPSTREAM_CONVERSATION_TRACE"
DEFAULT_OUT = Path(__file__).parents[1] / "results" / "policies"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policies", description="Compare routing policies in simulation."
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help=f"the conversation trace (${TRACE_VARIABLE})")
    parser.add_argument("--points", default="*", help="names or patterns, with commas: conversation-2-n8,agentic-*")
    parser.add_argument("--policies", default="", help="names, with commas; the oracle always runs (default: all)")
    parser.add_argument("--no-sweeps", action="store_true", help="leave out the loads that each policy holds")
    parser.add_argument("--quick", action="store_true", help="short workloads on eight replicas, to try the benchmark")
    parser.add_argument("--seed", type=int, default=grid.SEED, help="of made-up workloads (default %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="files to write, without their endings")
    parser.add_argument("--list", action="store_true", help="print the points and end")
    return parser.parse_args(arguments)


def chosen(points: Sequence[Point], patterns: str, trace: Path | None, quick: bool) -> tuple[Point, ...]:
    """Return the points that are wanted and can be run."""
    return tuple(
        point
        for point in points
        if any(fnmatchcase(point.name, pattern) for pattern in patterns.split(","))
        and (trace is not None or point.workload != grid.CONVERSATION)
        and not (quick and point.replicas > grid.UNIT_REPLICAS)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, and return 0; 1 when something was asked for that cannot be run."""
    options = _options(arguments)
    if options.list:
        for point in grid.POINTS:
            print(point.name, "fitted" if point.fitted else "held out")
        return 0
    told = os.environ.get(TRACE_VARIABLE)
    trace = options.trace or (Path(told) if told else None)
    try:
        return _compare(options, trace)
    except ControlplaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _compare(options: argparse.Namespace, trace: Path | None) -> int:
    if trace is None:
        print(f"no --trace and no ${TRACE_VARIABLE}: the conversation points are left out", file=sys.stderr)
    points = chosen(grid.POINTS, options.points, trace, options.quick)
    sweeps = () if options.no_sweeps or options.quick else grid.SWEEPS
    swept = chosen([point for sweep in sweeps for point in sweep.points()], options.points, trace, options.quick)
    if not points and not swept:
        print(f"error: no point is named {options.points!r}; --list shows them", file=sys.stderr)
        return 1
    compared = contenders(tuple(filter(None, options.policies.split(","))))
    every = tuple(dict.fromkeys((*points, *swept)))
    results = measure.run_all(every, compared, trace, options.seed, options.quick, _tell)
    made = report.Report(
        points=points,
        swept=tuple(point for point in swept if point not in points),
        contenders=compared,
        results=tuple(results),
        about=report.about(trace, options.seed, options.quick),
    )
    out: Path = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(out.name + ".json").write_text(json.dumps(report.as_json(made), indent=1) + "\n")
    out.with_name(out.name + ".md").write_text(report.markdown(made))
    plots.write(made, out)
    missed = [goal for goal in made.goals if not goal.reached]
    print(f"{len(made.goals) - len(missed)} of {len(made.goals)} goals reached; {out.with_name(out.name + '.md')}")
    for goal in missed:
        print(f"  {goal.point}: {goal.ratio:.2f} over {goal.text} ({goal.against}), at most {goal.at_most:.2f}")
    return 0


def _tell(result: Result, done: int, of: int) -> None:
    print(
        f"[{done:3}/{of}] {result.point:24} {result.contender:32} ttft {result.ttft_mean_s:8.3f} p99 "
        f"{result.ttft_p99_s:7.2f} s  tpot {result.tpot_mean_s * 1e3:6.1f} ms  hit {result.hit_rate:6.1%}  "
        f"ok {result.success_rate:7.2%}  {result.cpu_s:5.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
