"""One replica as a decision sees it: its record, what its node says, and its clock."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.planning.clocks import Clock
from controlplane.planning.world import Desired, Observation, Phase, PoolDesired, Record

#: Seconds between taking a replica out of rotation and believing a count of zero streams: decisions that the router
#: took just before have reached HAProxy by then (its decision timeout is tens of milliseconds).
DRAIN_SETTLE_S = 1.0
#: Seconds that a replica may be failed without having exited before it is started anew. Ejecting is at once; this
#: second deadline keeps an engine that is only slow from losing its KV cache.
UNRESPONSIVE_RESTART_S = 60.0

_WITHOUT_STREAMS = frozenset({Phase.PENDING, Phase.FAILED})


@dataclass(frozen=True, slots=True)
class Situation:
    """A record with its observation (None: the node is not heard) and clock."""

    record: Record
    seen: Observation | None
    clock: Clock

    @property
    def ready(self) -> bool:
        """Tell whether the replica takes new requests now."""
        return self.seen is not None and self.seen.phase is Phase.READY and not self.record.draining

    def may_hold_streams(self) -> bool:
        """Tell whether ending the engine now could cut a stream; a failed one has none left to keep."""
        if self.seen is None:
            return True
        if self.seen.phase is Phase.STARTING:
            return self.clock.served
        return self.seen.phase not in _WITHOUT_STREAMS

    def drain_deadline_s(self) -> float | None:
        """Return when the running drain stops waiting, None when none runs."""
        since = self.clock.drain_since_s
        return None if since is None else since + self.record.drain_timeout_s

    def drained(self, now_s: float) -> bool:
        """Tell whether a draining replica may end: no stream is left, or the deadline has passed."""
        since, deadline = self.clock.drain_since_s, self.drain_deadline_s()
        if since is None or deadline is None:
            return False
        quiet = self.seen is not None and self.seen.streams == 0 and self.seen.streams_at_s >= since + DRAIN_SETTLE_S
        return quiet or now_s >= deadline

    def stale_reason(self, pool: PoolDesired) -> str:
        """Return why the running generation is out of date, empty when it is not."""
        if self.record.restart_requested:
            return "restart_requested"
        return "spec_changed" if self.record.shape != pool.shape else ""

    def misplaced(self, pool: PoolDesired, desired: Desired) -> bool:
        """Tell whether the replica is where the spec no longer allows it."""
        record = self.record
        if record.external:
            return record.node != desired.prober
        node = desired.node(record.node)
        if node is None or (pool.nodes and node.name not in pool.nodes):
            return True
        last = record.port + record.ports - 1
        return record.host != node.address or not node.first_port <= record.port <= last <= node.last_port
