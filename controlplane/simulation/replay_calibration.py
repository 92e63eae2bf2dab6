"""Makes the modelled engines as fast as the real ones: the recorded policy, modelled, must take as long as it took.

What the router learns of speeds is for comparing replicas, not for predicting means: a decode rate learned beside
prefills has their share in it, and a model that adds prefills again would count them twice. So the recorded policy is
modelled first, and the engines' prefill and decode speeds are scaled, for all replicas of a model alike, until its
mean TTFT and TPOT are those that were measured. The other policy then gets the same engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log

from controlplane.simulation.outcome import Outcome
from controlplane.simulation.replay_model import Modelled, ModelRun
from controlplane.simulation.replay_observed import Observed
from controlplane.simulation.replay_read import Progress, Recorded
from controlplane.simulation.replay_scale import Scale

#: Runs at most, and the part that a mean may be off without another one.
RUNS = 6
CLOSE = 0.05
#: Part of what is missing (of its logarithm) that one step makes up for: prefill slows decode, so a whole step of both
#: would go too far. One step changes a speed by at most this factor, all of them together by at most that.
DAMPING = 0.7
STEP = 2.0
RANGE = 10.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The recorded policy on the engines that came out, and how these were scaled, by model."""

    modelled: Mapping[str, Modelled]
    scales: Mapping[str, Scale]


def calibrate(recorded: Recorded, observed: Observed, passes: Callable[[str], Progress]) -> Calibrated:
    """Model the recorded policy until it takes as long as it took. Raises BrokenJournal, OSError."""
    measured = observed.outcomes()
    scales: dict[str, Scale] = {}
    best: Calibrated | None = None
    least = float("inf")
    for number in range(1, RUNS + 1):
        run = ModelRun(recorded, observed, None, scales).run(passes(f"modelling what was recorded, {number}"))
        off = max((_off(measured[model], run[model].outcome) for model in run if model in measured), default=0.0)
        if off < least:
            least = off
            best = Calibrated(run, dict(scales))
        if off <= CLOSE:
            break
        scales = {
            model: _scaled(scales.get(model, Scale()), measured[model], run[model].outcome)
            for model in run
            if model in measured
        }
    assert best is not None
    return best


def _off(measured: Outcome, modelled: Outcome) -> float:
    """Return by which part the worse of the two means is off."""
    pairs = (
        (measured.ttft_mean_s, modelled.ttft_mean_s),
        (measured.tpot_mean_s, modelled.tpot_mean_s),
    )
    return max((abs(has / wants - 1.0) for wants, has in pairs if wants > 0.0), default=0.0)


def _scaled(scale: Scale, measured: Outcome, modelled: Outcome) -> Scale:
    return Scale(
        prefill=_bounded(scale.prefill, measured.ttft_mean_s, modelled.ttft_mean_s),
        decode=_bounded(scale.decode, measured.tpot_mean_s, modelled.tpot_mean_s),
    )


def _bounded(factor: float, wants: float, has: float) -> float:
    if wants <= 0.0 or has <= 0.0:
        return factor
    step = min(max(exp(DAMPING * log(wants / has)), 1.0 / STEP), STEP)
    return min(max(factor * step, 1.0 / RANGE), RANGE)
