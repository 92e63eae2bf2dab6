"""The nodes as they report: who is heard, what runs there, and the orders that wait for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from controlplane.errors import ControlplaneError
from dataplane.pb import node_pb2

#: Seconds of silence after which a node counts as lost: three of the reports that an agent owes at least every 2 s.
NODE_LOST_S = 6.0
#: Nodes that may be connected or remembered at once, those that no spec names included.
MAX_NODES = 2_048


class TooManyNodes(ControlplaneError):
    """More nodes report than one controller keeps."""

    code: ClassVar[str] = "too_many_nodes"
    grpc_status: ClassVar[str] = "RESOURCE_EXHAUSTED"


class Link:
    """One agent's stream. Holds the newest orders only: an agent that reads slowly skips what is out of date."""

    def __init__(self) -> None:
        self._orders: node_pb2.NodeOrders | None = None
        self._changed = asyncio.Event()
        self.closed = False

    def put(self, orders: node_pb2.NodeOrders) -> None:
        """Replace what waits to be sent."""
        self._orders = orders
        self._changed.set()

    def close(self) -> None:
        """End the stream after what waits."""
        self.closed = True
        self._changed.set()

    async def orders(self) -> AsyncIterator[node_pb2.NodeOrders]:
        """Yield the newest orders whenever they change, until the link is closed."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            waiting, self._orders = self._orders, None
            if waiting is not None:
                yield waiting
            if self.closed:
                return


@dataclass(slots=True)
class NodeState:
    """What is known of one node. ``heard_at_s`` is monotonic; None: never heard by this controller."""

    name: str
    known_since_s: float
    report: node_pb2.NodeReport | None = None
    heard_at_s: float | None = None
    link: Link | None = None
    orders: node_pb2.NodeOrders | None = None
    was_lost: bool = False

    def lost(self, now_s: float) -> bool:
        """Tell whether the node has been silent for too long."""
        return now_s - (self.heard_at_s if self.heard_at_s is not None else self.known_since_s) >= NODE_LOST_S


class NodeBoard:
    """All nodes by name. ``changed`` is called when a report says something that decisions rest on.

    ``attentive``: counts of streams matter now, so every report does.
    """

    def __init__(self, clock: Callable[[], float], changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self.nodes: dict[str, NodeState] = {}
        self.attentive = False

    def expect(self, names: Iterable[str]) -> None:
        """Know these nodes from now on, heard or not; forget those that are neither expected nor connected."""
        wanted = set(names)
        for name in wanted - self.nodes.keys():
            self.nodes[name] = NodeState(name, self._clock())
        for name in self.nodes.keys() - wanted:
            if self.nodes[name].link is None:
                del self.nodes[name]

    def connect(self, name: str) -> Link:
        """Open a stream for a node; an older one of the same name is ended: the newest agent is the live one."""
        state = self.nodes.get(name)
        if state is None:
            if len(self.nodes) >= MAX_NODES:
                raise TooManyNodes(f"{MAX_NODES} nodes report already")
            state = self.nodes[name] = NodeState(name, self._clock())
        if state.link is not None:
            state.link.close()
        state.link = Link()
        if state.orders is not None:
            state.link.put(state.orders)
        return state.link

    def disconnect(self, name: str, link: Link) -> None:
        """Note that a stream ended. Whether the node is lost is decided by the time since its last report."""
        state = self.nodes.get(name)
        if state is not None and state.link is link:
            state.link = None

    def hear(self, name: str, report: node_pb2.NodeReport) -> None:
        """Take a report."""
        state = self.nodes[name]
        fresh = state.heard_at_s is None or state.report is None or state.was_lost
        said = fresh or _decisive(report) != _decisive(state.report)
        state.report, state.heard_at_s = report, self._clock()
        if said or self.attentive:
            self._changed()

    def send(self, name: str, orders: node_pb2.NodeOrders) -> None:
        """Set a node's orders and hand them to its agent, now or when it connects."""
        state = self.nodes[name]
        state.orders = orders
        if state.link is not None:
            state.link.put(orders)

    def lost(self) -> frozenset[str]:
        """Return the names of the nodes that are lost now."""
        now_s = self._clock()
        return frozenset(name for name, state in self.nodes.items() if state.lost(now_s))

    def next_loss_s(self) -> float | None:
        """Return when the next node will be lost if it stays silent."""
        now_s = self._clock()
        times = (
            (state.heard_at_s if state.heard_at_s is not None else state.known_since_s) + NODE_LOST_S
            for state in self.nodes.values()
            if not state.lost(now_s)
        )
        return min(times, default=None)

    def gateways(self) -> list[tuple[float, node_pb2.GatewayReport]]:
        """Return the newest report of every gateway, each with the time that it came."""
        return [
            (state.heard_at_s, state.report.gateway)
            for state in self.nodes.values()
            if state.report is not None and state.heard_at_s is not None and state.report.HasField("gateway")
        ]


def _decisive(report: node_pb2.NodeReport | None) -> node_pb2.NodeReport:
    """Return a report without the counts that change with every request."""
    if report is None:
        return node_pb2.NodeReport()
    bare = node_pb2.NodeReport(node=report.node, orders_number=report.orders_number, engines=report.engines)
    if report.HasField("gateway"):
        gateway = report.gateway
        bare.gateway.CopyFrom(
            node_pb2.GatewayReport(
                gateway=gateway.gateway,
                topology_number=gateway.topology_number,
                pid=gateway.pid,
                ready=gateway.ready,
                error=gateway.error,
            )
        )
    return bare
