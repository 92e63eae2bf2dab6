"""Plots of the results, as PNG and SVG, when matplotlib is there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.policies import grid
from benchmarks.policies.contenders import SUBJECT
from benchmarks.policies.grid import Point
from benchmarks.policies.report import Report
from controlplane.simulation.study import ORACLE, SHARED

#: Ratios beyond this have one colour: a policy that is 100 times off would make all others look alike.
MAX_RATIO = 6.0
#: Colours that can be told apart.
COLOURS = 20


def write(report: Report, stem: Path) -> list[Path]:
    """Write ``<stem>-points`` and ``<stem>-sweeps``; return the files, none without matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    written = []
    for name, draw in (("points", _points), ("sweeps", _sweeps)):
        figure = draw(report)
        if figure is None:
            continue
        for kind in ("png", "svg"):
            path = stem.with_name(f"{stem.name}-{name}.{kind}")
            figure.savefig(path, dpi=130, bbox_inches="tight")
            written.append(path)
    return written


def _points(report: Report) -> Any:
    """Mean TTFT over the oracle's: a row for each contender, a column for each point."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    found = report.found
    points = [point for point in report.points if (point.name, ORACLE) in found]
    shown = [contender for contender in report.contenders if contender.policy != ORACLE]
    if not points or not shown:
        return None
    ratios = [
        [
            result.ttft_mean_s / found[point.name, ORACLE].ttft_mean_s
            if (result := found.get((point.name, contender.name)))
            else float("nan")
            for point in points
        ]
        for contender in shown
    ]
    figure = Figure(figsize=(3.5 + 0.75 * len(points), 2.0 + 0.32 * len(shown)))
    axes = figure.add_subplot()
    axes.imshow(ratios, aspect="auto", cmap="RdYlGn_r", norm=LogNorm(1 / MAX_RATIO, MAX_RATIO))
    for row, of_contender in enumerate(ratios):
        for column, ratio in enumerate(of_contender):
            text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(points)), [_column(point) for point in points], rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(shown)), [contender.name for contender in shown], fontsize=8)
    axes.set_title("mean TTFT over the oracle's (lower is better)", fontsize=10)
    return figure


def _column(point: Point) -> str:
    return point.name + ("" if point.fitted else " (held out)")


def _sweeps(report: Report) -> Any:
    """Mean TTFT as the load rises: a panel for each sweep."""
    import matplotlib
    from matplotlib.figure import Figure

    swept = {point.workload for point in report.swept}
    sweeps = [sweep for sweep in grid.SWEEPS if sweep.workload in swept]
    if not sweeps:
        return None
    figure = Figure(figsize=(5.0 * len(sweeps), 4.5))
    found = report.found
    colours = matplotlib.colormaps["tab20"]
    # Variants and the cluster-wide cache would make it a tangle; the tables have them.
    shown = [each for each in report.contenders if not each.variant and each.policy != SHARED]
    for panel, sweep in enumerate(sweeps):
        axes = figure.add_subplot(1, len(sweeps), panel + 1)
        for number, contender in enumerate(shown):
            results = [(p.load, r) for p in sweep.points() if (r := found.get((p.name, contender.name)))]
            style = "--" if contender.bound else "-"
            width = 2.5 if contender.policy == SUBJECT else 1.2
            loads, times = [load for load, _ in results], [r.ttft_mean_s for _, r in results]
            axes.plot(
                loads, times, style, color=colours(number % COLOURS), linewidth=width, marker=".", label=contender.name
            )
        axes.set_yscale("log")
        axes.set_xlabel(sweep.unit)
        axes.set_title(sweep.workload)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean TTFT, s")
    figure.axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure
