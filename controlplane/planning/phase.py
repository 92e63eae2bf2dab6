"""The phase that is published of a replica: the most pessimistic of what is wanted, reported and known."""

from __future__ import annotations

from controlplane.planning.world import Observation, Phase, Record


def published(record: Record, seen: Observation | None, *, lost: bool) -> Phase:
    """Return the phase for the topology. READY only when the node says so of this very generation.

    ``seen`` is None when the node is not heard; ``lost`` tells whether it was silent for too long.
    """
    if record.stopping:
        return Phase.STOPPING
    if lost:
        return Phase.FAILED
    if seen is None:
        return Phase.PENDING
    if seen.phase is Phase.READY and record.draining:
        return Phase.DRAINING
    return seen.phase
