"""What one pool's replicas need: ends that drain first, replacements one at a time, restarts with backoff."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.planning.actions import Action, Drain, Forget, Restart, Stop, Undrain
from controlplane.planning.clocks import BACKOFF_LAST_S
from controlplane.planning.situation import DRAIN_SETTLE_S, UNRESPONSIVE_RESTART_S, Situation
from controlplane.planning.world import Desired, DrainReason, Phase, PoolDesired

_ROLLOUT = frozenset(
    {
        DrainReason.SPEC_CHANGED,
        DrainReason.RESTART_REQUESTED,
        DrainReason.NODE_NOT_ALLOWED,
        DrainReason.PORTS_NEEDED,
    }
)


class PoolRollout:
    """Decides for the replicas of one pool; ``actions`` and ``wakes`` hold the outcome.

    Invariants, each checked by a property test: a replica that may hold streams is ended only after a drain that is
    over; at most one replica of a pool is out of rotation for a replacement; a replacement begins only while every
    other wanted replica that no operator drained is ready, so readiness never falls below wanted less one because of
    a rollout. Nothing is decided for a replica whose node is not heard: it may well be running.
    """

    def __init__(self, desired: Desired, pool: PoolDesired | None, now_s: float) -> None:
        self._desired = desired
        self._pool = pool
        self._now_s = now_s
        self.actions: list[Action] = []
        self.wakes: list[float] = []

    def decide(self, situations: Iterable[Situation], lost: frozenset[str]) -> None:
        """Fill ``actions`` and ``wakes`` for all replicas that have a record in this pool."""
        kept: list[Situation] = []
        for s in sorted(situations, key=lambda s: s.record.index):
            if s.record.node in lost and self._desired.node(s.record.node) is None:
                self.actions.append(Forget(s.record.replica, "node_removed"))
            elif s.record.stopping:
                if s.seen is not None and s.seen.gone:
                    self.actions.append(Forget(s.record.replica, "stopped"))
            elif reason := self._surplus(s):
                self._end(s, reason, Stop(s.record.replica, reason))
            else:
                kept.append(s)
        if self._pool is not None:
            self._replace(kept, self._pool)

    def _surplus(self, s: Situation) -> DrainReason | None:
        pool = self._pool
        if pool is None or s.record.model != pool.model or s.record.role != pool.role:
            return DrainReason.POOL_REMOVED
        if s.record.external != pool.external:
            return DrainReason.SPEC_CHANGED
        if pool.external:
            return None if (s.record.host, s.record.port) in pool.endpoints else DrainReason.ENDPOINT_REMOVED
        return None if s.record.index < pool.replicas else DrainReason.SCALE_DOWN

    def _end(self, s: Situation, reason: DrainReason, end: Action) -> None:
        """Take ``s`` towards ``end``: drain when it may hold streams, end it when that is over."""
        if s.seen is None:
            return
        if not s.may_hold_streams() or (s.record.drain and s.drained(self._now_s)):
            self.actions.append(end)
        elif not s.record.drain:
            self.actions.append(Drain(s.record.replica, reason, self._desired.drain_timeout_s))
        else:
            since, deadline = s.clock.drain_since_s, s.drain_deadline_s()
            if since is not None and deadline is not None:
                settled = since + DRAIN_SETTLE_S
                self.wakes.append(settled if self._now_s < settled < deadline else deadline)

    def _replace(self, kept: list[Situation], pool: PoolDesired) -> None:
        rolling = 0
        candidates: list[tuple[Situation, DrainReason, Action]] = []
        for s in kept:
            reason, end = self._replacement(s, pool)
            if s.record.drain and (reason is None or s.record.drain not in _ROLLOUT):
                self.actions.append(Undrain(s.record.replica, "wanted_again"))
            elif reason is None or end is None:
                self._revive(s, kept)
            elif s.record.drain or s.record.drained_by_operator or not s.may_hold_streams():
                rolling += 1 if s.record.drain else 0
                self._end(s, reason, end)
            else:
                candidates.append((s, reason, end))
        complete = len(kept) >= pool.replicas
        if candidates and not rolling and complete and all(s.ready or s.record.drained_by_operator for s in kept):
            self._end(*candidates[0])

    def _replacement(self, s: Situation, pool: PoolDesired) -> tuple[DrainReason | None, Action | None]:
        if s.misplaced(pool, self._desired):
            return DrainReason.NODE_NOT_ALLOWED, Stop(s.record.replica, DrainReason.NODE_NOT_ALLOWED)
        if s.record.ports < pool.ports:  # the ports beside its own may be another's: it starts anew elsewhere
            return DrainReason.PORTS_NEEDED, Stop(s.record.replica, DrainReason.PORTS_NEEDED)
        stale = s.stale_reason(pool)
        return (DrainReason(stale), Restart(s.record.replica, stale)) if stale else (None, None)

    def _revive(self, s: Situation, kept: list[Situation]) -> None:
        """Restart what exited after its backoff, and what hangs after the second deadline, one of a pool at a time."""
        if s.seen is None or s.seen.phase is not Phase.FAILED or s.record.external:
            return
        if s.seen.exited:
            at_s = s.clock.restart_at_s()
            reason = "crashed"
        else:
            at_s = s.clock.phase_since_s + UNRESPONSIVE_RESTART_S
            reason = "unresponsive"
            if any(o.seen and o.seen.phase in {Phase.PENDING, Phase.STARTING} for o in kept):
                at_s = max(at_s, self._now_s + BACKOFF_LAST_S)
        if self._now_s >= at_s:
            self.actions.append(Restart(s.record.replica, reason))
        else:
            self.wakes.append(at_s)
