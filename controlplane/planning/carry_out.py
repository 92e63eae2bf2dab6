"""What a plan's actions do to the records. The caller stores the result before it orders anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.planning.actions import Action, Drain, Forget, Restart, Start, Stop, Undrain
from controlplane.planning.world import Desired, Record


@dataclass(frozen=True, slots=True)
class Outcome:
    """The records after a plan. ``launched`` names those that have a new generation and need a launch."""

    records: dict[str, Record]
    generation: int
    launched: tuple[str, ...]


def carry_out(actions: Iterable[Action], records: Mapping[str, Record], desired: Desired, generation: int) -> Outcome:
    """Return the records after ``actions``; ``generation`` is the highest that was ever given in the cluster.

    Raises KeyError when an action names a replica that has no record, or a pool that is not desired.
    """
    held = dict(records)
    launched: list[str] = []
    for action in actions:
        match action:
            case Start():
                generation += 1
                held[action.replica] = _started(action, desired, generation)
                launched.append(action.replica)
            case Restart():
                generation += 1
                held[action.replica] = _restarted(held[action.replica], desired, generation)
                launched.append(action.replica)
            case Drain():
                held[action.replica] = replace(
                    held[action.replica], drain=str(action.reason), drain_timeout_s=action.timeout_s
                )
            case Undrain():
                held[action.replica] = replace(held[action.replica], drain="")
            case Stop():
                held[action.replica] = replace(held[action.replica], stopping=True)
            case Forget():
                del held[action.replica]
            case _:
                raise TypeError(f"no such action: {action!r}")
    return Outcome(held, generation, tuple(launched))


def _started(action: Start, desired: Desired, generation: int) -> Record:
    pool = desired.pool(action.pool)
    if pool is None:
        raise KeyError(action.pool)
    return Record(
        replica=action.replica,
        pool=pool.name,
        model=pool.model,
        role=pool.role,
        index=action.index,
        generation=generation,
        node=action.node,
        host=action.host,
        port=action.port,
        shape=pool.shape,
        external=pool.external,
        ports=pool.ports,
    )


def _restarted(record: Record, desired: Desired, generation: int) -> Record:
    pool = desired.pool(record.pool)
    if pool is None:
        raise KeyError(record.pool)
    return replace(
        record,
        generation=generation,
        shape=pool.shape,
        launch=b"",
        restarts=record.restarts + 1,
        restart_requested=False,
        drain="",
    )
