"""How long each replica has been in its phase, how often it crashed in a row, since when it drains.

The controller folds every observation into these clocks. They are not stored: after a restart of the controller every
wait begins anew, which only makes it more patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.planning.world import Observation, Phase, Record

#: First wait after a crash, doubled by each crash in a row: a transient fault costs a second, a broken engine little.
BACKOFF_FIRST_S = 1.0
#: Longest wait between restarts: an operator's repair is picked up within a minute.
BACKOFF_LAST_S = 60.0
#: Seconds of readiness after which earlier crashes no longer count.
BACKOFF_RESET_S = 60.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Times of one replica. ``served``: this generation was READY at some time."""

    generation: int
    phase: Phase | None = None
    phase_since_s: float = 0.0
    crashes: int = 0
    crashed: bool = False
    served: bool = False
    drain_since_s: float | None = None

    def restart_at_s(self) -> float:
        """Return when a replica that has crashed may be started again."""
        exponent = min(max(self.crashes - 1, 0), 16)
        return self.phase_since_s + min(BACKOFF_FIRST_S * 2.0**exponent, BACKOFF_LAST_S)


def advance(
    clocks: Mapping[str, Clock],
    records: Iterable[Record],
    replicas: Mapping[str, Observation],
    now_s: float,
) -> dict[str, Clock]:
    """Return the clocks after one more look at the world; those of forgotten replicas are dropped."""
    return {r.replica: _advanced(clocks.get(r.replica), r, replicas.get(r.replica), now_s) for r in records}


def _advanced(clock: Clock | None, record: Record, seen: Observation | None, now_s: float) -> Clock:
    if clock is None:
        clock = Clock(record.generation)
    elif clock.generation != record.generation:
        clock = Clock(record.generation, crashes=clock.crashes)
    phase = seen.phase if seen else None
    if phase != clock.phase:
        clock = replace(clock, phase=phase, phase_since_s=now_s)
    if seen and seen.exited and not clock.crashed:
        clock = replace(clock, crashed=True, crashes=clock.crashes + 1, phase_since_s=now_s)
    if phase is Phase.READY:
        steady = now_s - clock.phase_since_s >= BACKOFF_RESET_S
        clock = replace(clock, served=True, crashes=0 if steady else clock.crashes)
    if not record.draining:
        return replace(clock, drain_since_s=None)
    return clock if clock.drain_since_s is not None else replace(clock, drain_since_s=now_s)
