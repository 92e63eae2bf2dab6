"""Where a new replica goes: the node that holds the fewest of its pool, and ports in a row that nothing leases."""

from __future__ import annotations

from collections.abc import Iterable, Set

from controlplane.planning.actions import Blocked, Start
from controlplane.planning.world import Desired, NodeDesired, PoolDesired, Record


class Placement:
    """Places replicas one after the other; each placed one counts for the next.

    A placed replica is never moved by this class. Ports are leased by host, not by node: two nodes of one machine share
    its address and its ports. Nodes that are lost or drained come last and never, in this order: a lost node is used
    only when every allowed node is lost, because it may be back before another is.
    """

    def __init__(self, desired: Desired, records: Iterable[Record], lost: Set[str], drained: Set[str]) -> None:
        self._desired = desired
        self._lost = lost
        self._drained = drained
        self._held = [(r.pool, r.node, r.host, r.port + offset) for r in records for offset in range(r.ports)]

    def place(self, pool: PoolDesired, index: int, reason: str) -> Start | Blocked:
        """Return the Start for replica ``index`` of ``pool``, or why there is no place for it."""
        replica = f"{pool.name}-{index}"
        nodes = [
            n for n in self._desired.nodes if (not pool.nodes or n.name in pool.nodes) and n.name not in self._drained
        ]
        ranked = sorted(nodes, key=lambda n: self._rank(pool.name, n))
        for node in ranked:
            port = self._free_port(node, pool.ports)
            if port is not None:
                self._held += [(pool.name, node.name, node.address, port + offset) for offset in range(pool.ports)]
                return Start(replica, reason, pool.name, index, node.name, node.address, port)
        why = "every port of its nodes is leased" if nodes else "no node may take it"
        return Blocked(f"replica/{replica}", "no_place", f"{replica} has no place: {why}")

    def place_external(self, pool: PoolDesired, index: int, endpoint: tuple[str, int]) -> Start:
        """Return the Start for an endpoint that runs already; the prober's node looks after it."""
        host, port = endpoint
        return Start(f"{pool.name}-{index}", "wanted", pool.name, index, self._desired.prober, host, port)

    def _rank(self, pool: str, node: NodeDesired) -> tuple[bool, int, int]:
        same_pool = sum(1 for held in self._held if held[0] == pool and held[1] == node.name)
        return node.name in self._lost, same_pool, sum(1 for held in self._held if held[1] == node.name)

    def _free_port(self, node: NodeDesired, count: int) -> int | None:
        """Return the first of ``count`` free ports in a row."""
        leased = {port for _, _, host, port in self._held if host == node.address}
        firsts = range(node.first_port, node.last_port + 2 - count)
        return next((p for p in firsts if leased.isdisjoint(range(p, p + count))), None)
