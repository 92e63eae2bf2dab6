"""What the controller tells the others: the topology for routers, whole orders for each node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.controller import convert
from controlplane.controller.ledger import Ledger
from controlplane.controller.nodes import NODE_LOST_S, NodeBoard
from controlplane.controller.numbers import Sequence
from controlplane.controller.topology_board import TopologyBoard
from controlplane.planning.phase import published
from controlplane.planning.world import Phase, Record, View
from dataplane import names
from dataplane.pb import node_pb2, topology_pb2


@dataclass(frozen=True, slots=True)
class Standing:
    """The phase that is published of one incarnation, and since when (monotonic seconds)."""

    generation: int
    phase: Phase
    since_s: float


class Publisher:
    """Publishes the topology and the orders when they differ from the last ones, and decides when it may.

    - After the controller's start nothing is published or ordered until each node that holds replicas was heard, or
      NODE_LOST_S have passed and at least one was. Routers and gateways keep what they have, so a restart changes
      nothing.
    - When every node is lost at once, it is the controller that is blind: the phases that were published last stay. On
      one machine, a dead node agent therefore ends no traffic; HAProxy's own checks still do.

    ``inherited``: the controller started with replicas of an earlier one. ``out_since``: server name -> number of the
    first topology that kept it out of rotation. ``standing``: what is published of each replica.
    """

    def __init__(self, ledger: Ledger, nodes: NodeBoard, board: TopologyBoard, clock: Callable[[], float]) -> None:
        self.inherited = False
        self.out_since: dict[str, int] = {}
        self.standing: dict[str, Standing] = {}
        self._ledger = ledger
        self._nodes = nodes
        self._board = board
        self._clock = clock
        self._started_s = clock()
        self._told = False
        self._numbers = Sequence(ledger.store, "topology")
        self._order_numbers = Sequence(ledger.store, "orders")

    async def publish(self, view: View, now_s: float) -> None:
        """Publish and order what is new. Raises StoreFull or StoreFailed when no number is left to give."""
        if self._settled():
            await self._publish(view, now_s)
            await self._order()

    def _settled(self) -> bool:
        """Tell whether enough was heard since the start to publish; see the class."""
        if self._ledger.cluster is None:
            return False
        if self._board.current is not None or not self.inherited:
            return True
        holders = {record.node for record in self._ledger.records.values()}
        heard = {name for name in holders if (s := self._nodes.nodes.get(name)) and s.heard_at_s is not None}
        return heard == holders or (bool(heard) and self._clock() - self._started_s >= NODE_LOST_S)

    def _blind(self, view: View) -> bool:
        nodes = self._nodes.nodes.keys()
        return bool(nodes) and view.lost_nodes >= nodes

    def _phase(self, record: Record, view: View, *, blind: bool) -> Phase:
        before = self.standing.get(record.replica)
        if blind and not record.stopping:
            return before.phase if before and before.generation == record.generation else Phase.PENDING
        return published(record, view.replicas.get(record.replica), lost=record.node in view.lost_nodes)

    async def _publish(self, view: View, now_s: float) -> None:
        """Publish a topology when it differs from the last one in anything but number and time."""
        cluster = self._ledger.cluster
        assert cluster is not None
        records = list(self._ledger.records.values())
        blind = self._blind(view)
        phases = {record.replica: self._phase(record, view, blind=blind) for record in records}
        reports = {name: convert.engine_reports(state.report) for name, state in self._nodes.nodes.items()}
        replicas = []
        for record in records:
            report = reports.get(record.node, {}).get(record.replica)
            current = report if report is not None and report.generation == record.generation else None
            replicas.append(convert.replica(record, phases[record.replica], current, cluster))
        topology = convert.topology(cluster, records, replicas)
        if self._board.current is None or not _same(self._board.current, topology):
            topology.number = await self._numbers.take()
            topology.published_unix_ms = time.time_ns() // 1_000_000
            self._note_out_of_rotation(topology)
            self._board.publish(topology)
        self._tell_phases(records, phases, now_s)

    def _note_out_of_rotation(self, topology: topology_pb2.Topology) -> None:
        out: dict[str, int] = {}
        for replica in topology.replicas:
            if replica.state != topology_pb2.REPLICA_STATE_READY:
                out[replica.server] = self.out_since.get(replica.server, topology.number)
        self.out_since = out

    def _tell_phases(self, records: list[Record], phases: dict[str, Phase], now_s: float) -> None:
        standing: dict[str, Standing] = {}
        for record in records:
            phase = phases[record.replica]
            before = self.standing.get(record.replica)
            if before and (before.generation, before.phase) == (record.generation, phase):
                standing[record.replica] = before
                continue
            standing[record.replica] = Standing(record.generation, phase, now_s)
            if self.inherited and not self._told:
                continue  # it was told before the controller's restart
            server = names.server_name(record.replica, record.generation)
            why = self._why(record)
            self._ledger.events.add(
                f"replica/{record.replica}", f"replica_{phase}", f"{server}: {why}" if why else server
            )
        self.standing = standing
        self._told = True

    def _why(self, record: Record) -> str:
        report = convert.engine_reports(self._report(record.node)).get(record.replica)
        if report is None or report.generation != record.generation:
            return ""
        ended = f"exit code {report.exit_code}" if report.exited else ""
        return "; ".join(part for part in (report.detail, ended) if part)

    def _report(self, node: str) -> node_pb2.NodeReport | None:
        state = self._nodes.nodes.get(node)
        return state.report if state else None

    async def _order(self) -> None:
        """Hand each node its whole orders when they differ from the last ones; nodes of no concern get none."""
        ledger, topology = self._ledger, self._board.current
        assert topology is not None
        concerned = {record.node for record in ledger.records.values()}
        if ledger.desired is not None:
            concerned.update(node.name for node in ledger.desired.nodes)
        for name, state in self._nodes.nodes.items():
            if name not in concerned and state.orders is None:
                continue
            orders = convert.orders(name, ledger.records.values(), ledger.cluster, topology, ledger.keys.values())
            if state.orders is not None:
                orders.number = state.orders.number
                if orders == state.orders:
                    continue
            orders.number = await self._order_numbers.take()
            self._nodes.send(name, orders)


def _same(old: topology_pb2.Topology, new: topology_pb2.Topology) -> bool:
    copy = topology_pb2.Topology()
    copy.CopyFrom(old)
    copy.number = 0
    copy.published_unix_ms = 0
    return copy == new
