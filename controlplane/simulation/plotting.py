"""Plots of TTFT, TPOT, hit rate and load, as PNG and SVG. matplotlib is an optional dependency: the extra `plots`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from controlplane.simulation.errors import InvalidSimulation
from controlplane.simulation.outcome import Outcome, Sample, mean

#: Points of one curve; more cannot be seen and make an SVG large.
MAX_POINTS = 400
LOAD_POINTS = 100
FORMATS = ("png", "svg")
INCHES = (9.0, 5.0)


def check() -> None:
    """Raise InvalidSimulation when plots cannot be drawn, before anything is run for them."""
    if find_spec("matplotlib") is None:
        raise InvalidSimulation("--plots needs matplotlib: pip install 'slipstream[plots]'")


def write(folder: Path, title: str, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write ttft, tpot, hit_rate and load in each format; return the files. Raises InvalidSimulation."""
    check()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSimulation(f"--plots {folder}: {error.strerror}") from None
    # Without pyplot: no window system is looked for, and no figure outlives its plot.
    from matplotlib.figure import Figure

    written = []
    for name, panels in PLOTS.items():
        figure = Figure(figsize=(INCHES[0], INCHES[1] * (1 + 0.6 * (len(panels) - 1))))
        for place, draw in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, place + 1)
            axes.grid(alpha=0.3)
            draw(axes, outcomes)
        figure.axes[0].set_title(title)
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            figure.savefig(path, dpi=150, bbox_inches="tight")
            written.append(path)
    return written


def _distribution(axes: Any, outcomes: Sequence[Outcome], of: str, label: str, scale: float) -> None:
    for outcome in outcomes:
        values = getattr(outcome, of)
        if not values:
            continue
        places = sorted({round(step * (len(values) - 1) / MAX_POINTS) for step in range(MAX_POINTS + 1)})
        shares = [100 * (place + 1) / len(values) for place in places]
        axes.plot([values[place] * scale for place in places], shares, label=outcome.name)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("requests within, %")
    axes.legend()


def _ttft(axes: Any, outcomes: Sequence[Outcome]) -> None:
    _distribution(axes, outcomes, "ttft_s", "time to first token, s", 1.0)


def _tpot(axes: Any, outcomes: Sequence[Outcome]) -> None:
    _distribution(axes, outcomes, "tpot_s", "time per output token, ms", 1e3)


def _hit_rate(axes: Any, outcomes: Sequence[Outcome]) -> None:
    names = [outcome.name for outcome in outcomes]
    axes.barh(names, [100 * outcome.hit_rate for outcome in outcomes])
    axes.invert_yaxis()
    axes.set_xlabel("prompt tokens found in the prefix cache, %")


def _most(axes: Any, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        parts = list(_parts(outcome.load))
        axes.plot(
            [part[0].at_s for part in parts], [mean([s.most for s in part]) for part in parts], label=outcome.name
        )
    axes.set_ylabel("in flight, busiest replica")
    axes.legend(fontsize=8)


def _mean(axes: Any, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        parts = list(_parts(outcome.load))
        axes.plot(
            [part[0].at_s for part in parts], [mean([s.mean for s in part]) for part in parts], label=outcome.name
        )
    axes.set_xlabel("simulated seconds")
    axes.set_ylabel("in flight, mean of the replicas")


def _parts(load: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Cut a curve of the load into parts, each drawn as one point: their mean."""
    size = max(1, len(load) // LOAD_POINTS)
    return (load[at : at + size] for at in range(0, len(load), size))


#: name of a plot -> its panels, from the top.
PLOTS = {"ttft": (_ttft,), "tpot": (_tpot,), "hit_rate": (_hit_rate,), "load": (_most, _mean)}
