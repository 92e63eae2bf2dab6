"""A journal replayed, and its requests put to another policy: what ``slipstream replay`` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from controlplane.errors import NotFound
from controlplane.routing.policies.registry import checked
from controlplane.simulation.outcome import Outcome
from controlplane.simulation.replay import Replay, replay
from controlplane.simulation.replay_calibration import calibrate
from controlplane.simulation.replay_model import Modelled, ModelRun, Other
from controlplane.simulation.replay_observed import Observed
from controlplane.simulation.replay_read import Progress, Recorded, find, read
from controlplane.simulation.replay_scale import Scale

#: Called once for each pass over the journal, with its name.
Passes = Callable[[str], Progress]


@dataclass(frozen=True, slots=True)
class Figures:
    """One model: what was measured (None: nothing), the recorded policy modelled, and the other one modelled.

    ``scale`` is by how much the modelled engines had to differ from what the router believed of them.
    """

    measured: Outcome | None
    recorded: Modelled
    other: Modelled
    scale: Scale

    def summary(self) -> dict[str, object]:
        """Return the figures for programs; seconds."""
        return {
            "measured": None if self.measured is None else self.measured.summary(),
            "modelled": {
                "recorded": _summary(self.recorded),
                "other": _summary(self.other),
            },
            "calibration": {"prefill": self.scale.prefill, "decode": self.scale.decode},
            "predicted_ttft_gain_s": self.recorded.outcome.ttft_mean_s - self.other.outcome.ttft_mean_s,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Return the figures as a table's rows."""
        shown = [_row("measured", self.measured, None)] if self.measured is not None else []
        for told, modelled in (("modelled", self.recorded), ("modelled instead", self.other)):
            shown.append(_row(f"{modelled.outcome.name}, {told}", modelled.outcome, modelled.regret_s))
        return shown


def other_policy(policy: str, parameters: Mapping[str, float], model: str) -> Other:
    """Return a policy to ask. Raises UnknownPolicy."""
    return Other(policy, checked(policy, parameters), model)


def run(path: Path, other: Other | None, passes: Passes) -> tuple[Replay, dict[str, Figures]]:
    """Check a journal, replay it, and when there is another policy model both.

    A policy that the journal was written with has no figures: the replay itself is the answer. Raises BrokenJournal,
    NotFound, OSError; nothing has run when a line is broken.
    """
    recorded = read(find(path), passes("reading"))
    if other is not None:
        _check_model(recorded, other)
    observed = Observed(recorded.decisions)
    result = replay(recorded, passes("replaying"), observed)
    if other is None or _is_recorded(recorded, other):
        return result, {}
    calibrated = calibrate(recorded, observed, passes)
    before = calibrated.modelled
    after = ModelRun(recorded, observed, other, calibrated.scales).run(passes(f"modelling {other.policy}"))
    measured = observed.outcomes()
    return result, {
        model: Figures(measured.get(model), before[model], after[model], calibrated.scales.get(model, Scale()))
        for model in before
        if model in after and other.model in ("", model)
    }


def _check_model(recorded: Recorded, other: Other) -> None:
    known = {model for model, _, _ in recorded.policies}
    if other.model and other.model not in known:
        raise NotFound(f"the journal has no model {other.model!r}; there are: {', '.join(sorted(known))}")


def _is_recorded(recorded: Recorded, other: Other) -> bool:
    """Whether each model has had just this policy all the time."""
    return all(
        policy == other.policy and checked(policy, dict(parameters)) == other.parameters
        for model, policy, parameters in recorded.policies
        if other.model in ("", model)
    )


def _summary(modelled: Modelled) -> dict[str, object]:
    return {"policy": modelled.outcome.name, **modelled.outcome.summary(), "regret_s": modelled.regret_s}


def _row(name: str, outcome: Outcome, regret_s: float | None) -> tuple[str, ...]:
    return (
        name,
        f"{outcome.ttft_mean_s:.3f} s",
        f"{outcome.ttft_p99_s:.3f} s",
        f"{outcome.tpot_mean_s * 1e3:.1f} ms",
        f"{outcome.hit_rate:.1%}",
        f"{outcome.success_rate:.2%}",
        f"{outcome.imbalance:.2f}",
        "-" if regret_s is None else f"{regret_s:.4f} s",
    )
