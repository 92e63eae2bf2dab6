"""A simulation as somebody asks for it, checked in whole before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from controlplane.routing.policies.registry import DEFAULT_POLICY
from controlplane.simulation import study, trace
from controlplane.simulation.capacity import MAX_REPLICAS
from controlplane.simulation.errors import InvalidSimulation
from controlplane.simulation.profile import G8B
from controlplane.simulation.replayed import Replayed
from controlplane.simulation.routed import Delays
from controlplane.simulation.study import Study
from controlplane.simulation.synthetic import Agentic, Conversations, SharedPrefix
from controlplane.simulation.workload import Workload

if TYPE_CHECKING:  # the spec package costs 0.3 s to import, and most simulations have no spec
    from controlplane.simulation.fleet import Fleet

WORKLOADS = ("agentic", "shared_prefix", "conversation")
DEFAULT_REPLICAS = 8
DEFAULT_DURATION_S = 300.0
DEFAULT_USERS = 64
DEFAULT_RATE = 8.0
#: Bounds of what may be asked for; a run's memory and time grow with their product.
MAX_COPIES = 1_024
MAX_USERS = 1_000_000
MAX_RATE = 100_000.0
MAX_SPEEDUP = 10_000.0
MAX_DURATION_S = 7 * 86_400.0
MAX_DELAY_S = 3_600.0
#: Reading gauges more often than this costs more than all else in a run.
MIN_SCRAPE_INTERVAL_S = 0.01
MAX_REQUESTS = 5_000_000

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Setting:
    """Options of one simulation; None is what was not said. ``parameters`` are those of ``policy``."""

    trace: Path | None = None
    speedup: float | None = None
    copies: int | None = None
    workload: str | None = None
    rate: float | None = None
    users: int | None = None
    duration_s: float | None = None
    replicas: int | None = None
    prefill_replicas: int | None = None
    policy: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    compare: tuple[str, ...] = ()
    seed: int = 0
    precise: bool = False
    report_delay_s: float | None = None
    scrape_interval_s: float | None = None

    def study(self, fleet: Fleet | None = None) -> tuple[Study, tuple[str, ...]]:
        """Return the study and the names to run in it: the policy, what it is compared with, the oracle last.

        Reads the trace. Raises InvalidSimulation, InvalidTrace or UnknownPolicy.
        """
        policy = self.policy or (fleet.policy if fleet is not None else DEFAULT_POLICY)
        parameters = dict(self.parameters)
        if fleet is not None and policy == fleet.policy:
            parameters = {**fleet.parameters, **parameters}
        names = study.named((policy, *self.compare), {policy: parameters})
        names = (*(name for name in names if name not in study.BOUNDS), study.ORACLE) + (
            (study.SHARED,) if study.SHARED in names else ()
        )
        count = _within("--replicas", self.replicas, 1, MAX_REPLICAS)
        prefill = _within("--prefill-replicas", self.prefill_replicas, 0, MAX_REPLICAS)
        engines = fleet.engines if fleet is not None else (G8B,) * DEFAULT_REPLICAS
        prefill_engines = fleet.prefill_engines if fleet is not None else ()
        if prefill is not None:
            kinds = prefill_engines or engines
            prefill_engines = tuple(kinds[index % len(kinds)] for index in range(prefill))
        made = Study(
            workload=self._workload(),
            engines=engines,
            prefill_engines=prefill_engines,
            delays=self._delays(),
            seed=self.seed,
            parameters={policy: parameters},
            admission=fleet.admission if fleet is not None else None,
            precise=self.precise or (fleet is not None and fleet.precise),
        )
        return (made.resized(count) if count is not None else made), names

    def _delays(self) -> Delays:
        delays = Delays()
        report_s = _within("--report-delay", self.report_delay_s, 0.0, MAX_DELAY_S)
        interval_s = _within("--scrape-interval", self.scrape_interval_s, 0.0, MAX_DELAY_S)
        if report_s is not None:
            delays = replace(delays, report_s=report_s)
        if interval_s:
            _within("--scrape-interval", interval_s, MIN_SCRAPE_INTERVAL_S, MAX_DELAY_S)
        return delays if interval_s is None else replace(delays, scrape_interval_s=interval_s)

    def _workload(self) -> Callable[[], Workload]:
        """Return what makes the workload anew for each run."""
        if (self.trace is None) == (self.workload is None):
            raise InvalidSimulation(f"say either --trace FILE or --workload, one of {', '.join(WORKLOADS)}")
        if self.trace is not None:
            return self._replayed(self.trace)
        name = self.workload
        if name not in WORKLOADS:
            raise InvalidSimulation(f"--workload {name!r}: there are {', '.join(WORKLOADS)}")
        self._refuse(f"--workload {name}", speedup=self.speedup, copies=self.copies)
        seed = self.seed
        length_s = _within("--duration", self.duration_s, 1.0, MAX_DURATION_S) or DEFAULT_DURATION_S
        if name == "agentic":
            self._refuse("--workload agentic", rate=self.rate)
            users = _within("--users", self.users, 1, MAX_USERS) or DEFAULT_USERS
            return lambda: Agentic(users, length_s, seed)
        self._refuse(f"--workload {name}", users=self.users)
        rate = _within("--rate", self.rate, 1e-3, MAX_RATE) or DEFAULT_RATE
        if rate * length_s > MAX_REQUESTS:
            raise InvalidSimulation(f"--rate and --duration make more than {MAX_REQUESTS:,} requests")
        if name == "shared_prefix":
            return lambda: SharedPrefix(rate, length_s, seed)
        return lambda: Conversations(rate, length_s, seed)

    def _replayed(self, path: Path) -> Callable[[], Workload]:
        self._refuse("--trace", rate=self.rate, users=self.users, duration=self.duration_s)
        speedup = _within("--speedup", self.speedup, 1e-3, MAX_SPEEDUP) or 1.0
        copies = _within("--copies", self.copies, 1, MAX_COPIES) or 1
        rows = trace.read(path)
        if len(rows) * copies > MAX_REQUESTS:
            raise InvalidSimulation(f"--copies {copies} of {len(rows):,} requests are more than {MAX_REQUESTS:,}")
        made = Replayed(rows, speedup, copies)
        return lambda: made

    @staticmethod
    def _refuse(what: str, **options: object) -> None:
        for name, value in options.items():
            if value is not None:
                raise InvalidSimulation(f"--{name} does not go with {what}")


def _within(option: str, value: Number | None, least: Number, most: Number) -> Number | None:
    """Return the value when it is within its bounds, or was not said. Raises InvalidSimulation, for NaN too."""
    if value is not None and not least <= value <= most:
        raise InvalidSimulation(f"{option} is {value:g}; it must be {least:g} to {most:,}")
    return value
