"""A workload, a fleet, and the choosers that are tried on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.routing.admission.settings import Settings
from controlplane.routing.policies import registry
from controlplane.simulation.cache import SharedBlocks
from controlplane.simulation.chooser import Chooser
from controlplane.simulation.engine import Engine
from controlplane.simulation.errors import InvalidSimulation
from controlplane.simulation.oracle import Oracle
from controlplane.simulation.outcome import Outcome
from controlplane.simulation.profile import EngineProfile
from controlplane.simulation.routed import Delays, Routed, Routing
from controlplane.simulation.run import WARM_UP, Simulation
from controlplane.simulation.workload import Workload

ORACLE = "oracle"
#: The oracle again, over engines that read one cluster-wide cache at no cost.
SHARED = "shared"
BOUNDS = (ORACLE, SHARED)

#: (requests done, simulated seconds) of the run that is going on.
Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Study:
    """What is held fixed while choosers change. ``workload`` makes a fresh one for each run.

    ``engines`` are the profiles of the replicas that answer; ``prefill_engines`` of those that only prefill, for
    them, when there are any. ``admission`` and ``precise`` are those of Routing, for every policy.
    """

    workload: Callable[[], Workload]
    engines: tuple[EngineProfile, ...]
    prefill_engines: tuple[EngineProfile, ...] = ()
    delays: Delays = field(default_factory=Delays)
    warm_up: float = WARM_UP
    seed: int = 0
    parameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    admission: Settings | None = None
    precise: bool = False

    def resized(self, replicas: int) -> Study:
        """Return the same with so many replicas, of its kinds in turn."""
        kinds = self.engines
        return replace(self, engines=tuple(kinds[index % len(kinds)] for index in range(replicas)))

    def _routing(self, policy: str) -> Routing:
        return Routing(policy, self.parameters.get(policy, {}), self.admission, self.precise)

    def run(self, name: str, progress: Progress | None = None) -> Outcome:
        """Run one policy or bound by name. Raises UnknownPolicy, InvalidSimulation."""
        shared = SharedBlocks() if name == SHARED else None
        engines = [Engine(index, profile, shared) for index, profile in enumerate(self.engines)]
        prefill = [
            Engine(index, profile, shared, prefill_only=True) for index, profile in enumerate(self.prefill_engines)
        ]
        bound = name in BOUNDS
        chooser: Chooser = Oracle(name) if bound else Routed(self._routing(name), self.delays, self.seed)
        return Simulation(self.workload(), chooser, engines, prefill, warm_up=self.warm_up, progress=progress).run()


def named(names: Sequence[str], parameters: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Return the choosers that ``names`` stand for; ``all`` is every policy and the oracle.

    Raises InvalidSimulation for a name that does not exist, UnknownPolicy for a parameter that does not fit.
    """
    chosen: dict[str, None] = {}
    for name in names:
        if name == "all":
            chosen.update(dict.fromkeys((*registry.POLICIES, ORACLE)))
        elif name in registry.POLICIES or name in BOUNDS:
            chosen[name] = None
        else:
            known = ", ".join((*sorted(registry.POLICIES), *BOUNDS, "all"))
            raise InvalidSimulation(f"there is no policy {name!r}; there are {known}")
    for name, given in parameters.items():
        if name not in BOUNDS:
            registry.checked(name, given)
        elif given:
            raise InvalidSimulation(f"--set: {name} has no parameters")
    return tuple(chosen)
