"""Plays a plan through with engines that obey at once: what an Apply will lead to, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controlplane.planning.actions import Action, Forget, Plan
from controlplane.planning.carry_out import carry_out
from controlplane.planning.clocks import Clock, advance
from controlplane.planning.plan import plan
from controlplane.planning.world import Desired, Observation, Phase, Record, View

#: Steps per replica that a rehearsal may take: draining, ending and starting one again takes four.
STEPS_PER_REPLICA = 8


def rehearse(
    desired: Desired, records: Iterable[Record], view: View, clocks: Mapping[str, Clock], now_s: float
) -> Plan:
    """Return all actions until nothing is left to do, in order, without Forget, and what stays blocked.

    Replicas of nodes that are not heard keep their part: for them nothing is foretold.
    """
    held = {record.replica: record for record in records}
    unheard = frozenset(held) - frozenset(view.replicas)
    known = dict(clocks)
    now = view
    taken: list[Action] = []
    blocked = plan(desired, held.values(), view, known, now_s).blocked
    generation = max((record.generation for record in held.values()), default=0)
    wanted = sum(pool.replicas for pool in desired.pools)
    for _ in range(STEPS_PER_REPLICA * (len(held) + wanted + 1)):
        known = advance(known, held.values(), now.replicas, now_s)
        step = plan(desired, held.values(), now, known, now_s)
        blocked = step.blocked
        if not step.actions and step.wake_s is None:
            break
        taken += [action for action in step.actions if not isinstance(action, Forget)]
        outcome = carry_out(step.actions, held, desired, generation)
        held, generation = outcome.records, outcome.generation
        now_s = max(now_s + 2.0, step.wake_s or 0.0)
        obeyed = {r.replica: _obeyed(r, now_s) for r in held.values() if r.replica not in unheard}
        now = View(obeyed, view.lost_nodes, view.drained_nodes)
    return Plan(tuple(taken), blocked)


def _obeyed(record: Record, now_s: float) -> Observation:
    if record.stopping:
        return Observation(Phase.STOPPING, gone=True)
    return Observation(Phase.READY, streams=0, streams_at_s=now_s)
