"""What to do about the engines of this node: what is ordered against what is there. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum


class Life(Enum):
    """Where a replica's process stands on this node."""

    STARTING = "starting"  # being created, or its creation failed and is tried again
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"  # it ran and is gone, by itself or because it was stopped
    PROBED = "probed"  # external: its process is not ours


@dataclass(frozen=True, slots=True)
class Wanted:
    """One replica that is ordered."""

    replica: str
    generation: int
    external: bool
    stop_grace_s: float


@dataclass(frozen=True, slots=True)
class Held:
    """One replica that is here; ``stop_grace_s`` is that of its own order."""

    replica: str
    generation: int
    life: Life
    stop_grace_s: float


@dataclass(frozen=True, slots=True)
class Start:
    """Create its process."""

    replica: str
    generation: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the endpoint of an external replica."""

    replica: str
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End its process."""

    replica: str
    generation: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop what is known of it; no process of it is left."""

    replica: str
    generation: int


Action = Start | Probe | Stop | Forget


def decide(wanted: Iterable[Wanted], held: Mapping[str, Held]) -> list[Action]:
    """Return what has to happen now, what makes room first.

    A generation runs at most once: one that ended, for whatever reason, is kept as ended for as long as it is ordered,
    and only another generation takes its place. Of one replica no second process is started while a first is there, so
    an order for another generation first stops the old one and is carried out when that is gone.
    """
    ordered = {item.replica: item for item in wanted}
    room: list[Action] = []
    gone: set[str] = set()
    for name in sorted(held):
        there, want = held[name], ordered.get(name)
        if want is not None and _fits(there, want):
            continue
        match there.life:
            case Life.RUNNING:
                room.append(Stop(name, there.generation, there.stop_grace_s if want is None else want.stop_grace_s))
            case Life.ENDED | Life.PROBED:
                room.append(Forget(name, there.generation))
                gone.add(name)
            case Life.STARTING | Life.STOPPING:
                pass  # decided again when that is over
    new = (item for name, item in sorted(ordered.items()) if name not in held or name in gone)
    return room + [_begin(item) for item in new]


def _fits(there: Held, want: Wanted) -> bool:
    return there.generation == want.generation and (there.life is Life.PROBED) == want.external


def _begin(item: Wanted) -> Action:
    return (Probe if item.external else Start)(item.replica, item.generation)
