"""Which servers go when one engine ends. PURE."""

from __future__ import annotations

from collections.abc import Collection

from dataplane.pb import topology_pb2


def servers_lost(topology: topology_pb2.Topology, dead: Collection[str]) -> list[str]:
    """Return the topology's servers that cannot serve any more, in its order.

    These are the dead and all that share a group and generation with one of them: a group dies as one, although its
    other ranks may go on answering their health checks.
    """
    gone = set(dead)
    gangs = {_gang(replica) for replica in topology.replicas if replica.server in gone}
    return [replica.server for replica in topology.replicas if replica.server in gone or _gang(replica) in gangs]


def _gang(replica: topology_pb2.Replica) -> tuple[str, int]:
    # Without a group a replica is a gang of its own.
    return (replica.group or replica.server, replica.generation)
