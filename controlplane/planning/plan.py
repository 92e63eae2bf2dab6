"""The difference between what is wanted and what is, as named actions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controlplane.planning.actions import Action, Blocked, Plan
from controlplane.planning.clocks import Clock
from controlplane.planning.placement import Placement
from controlplane.planning.rollout import PoolRollout
from controlplane.planning.situation import Situation
from controlplane.planning.world import Desired, PoolDesired, Record, View


def plan(desired: Desired, records: Iterable[Record], view: View, clocks: Mapping[str, Clock], now_s: float) -> Plan:
    """Return what to do now. Level-based: the same input gives the same plan, whatever happened before.

    Carrying the actions out and looking again leads to an empty plan when the engines do as they are told.
    """
    held = tuple(records)
    actions: list[Action] = []
    blocked: list[Blocked] = []
    wakes: list[float] = []
    placement = Placement(desired, held, view.lost_nodes, view.drained_nodes)
    of_pool: dict[str, list[Situation]] = {pool.name: [] for pool in desired.pools}
    for record in held:
        clock = clocks.get(record.replica) or Clock(record.generation)
        of_pool.setdefault(record.pool, []).append(Situation(record, view.replicas.get(record.replica), clock))
    for name, situations in of_pool.items():
        pool = desired.pool(name)
        rollout = PoolRollout(desired, pool, now_s)
        rollout.decide(situations, view.lost_nodes)
        actions += rollout.actions
        wakes += rollout.wakes
        for step in _missing(pool, [s.record for s in situations], placement):
            if isinstance(step, Blocked):
                blocked.append(step)
            else:
                actions.append(step)
    return Plan(tuple(actions), tuple(blocked), min((w for w in wakes if w > now_s), default=None))


def _missing(pool: PoolDesired | None, held: list[Record], placement: Placement) -> Iterable[Action | Blocked]:
    if pool is None:
        return
    taken = {record.index for record in held}
    if not pool.external:
        for index in range(pool.replicas):
            if index not in taken:
                yield placement.place(pool, index, "wanted")
        return
    known = {(record.host, record.port) for record in held}
    for endpoint in pool.endpoints:
        if endpoint not in known:
            index = next(i for i in range(len(taken) + 1) if i not in taken)
            taken.add(index)
            yield placement.place_external(pool, index, endpoint)
