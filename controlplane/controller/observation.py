"""Node reports -> what planning calls a view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controlplane.controller import convert
from controlplane.controller.nodes import NodeBoard, NodeState
from controlplane.planning.world import Observation, Phase, Record, View
from dataplane import names
from dataplane.pb import node_pb2


def view(
    records: Iterable[Record], board: NodeBoard, out_since: Mapping[str, int], drained_nodes: frozenset[str]
) -> View:
    """Return what is known of every record now.

    ``out_since``: server name -> number of the first topology that kept the server out of rotation; only a gateway that
    has applied that one (or a later) can tell that no stream will come.
    """
    lost = board.lost()
    gateways = board.gateways()
    seen: dict[str, Observation] = {}
    reports = {name: convert.engine_reports(state.report) for name, state in board.nodes.items()}
    for record in records:
        state = board.nodes.get(record.node)
        if state is None or state.heard_at_s is None or record.node in lost:
            continue
        streams, at_s = _streams(record, gateways, out_since)
        report = reports[record.node].get(record.replica)
        current = report if report is not None and report.generation == record.generation else None
        seen[record.replica] = Observation(
            phase=_phase(current),
            exited=current is not None and current.exited,
            gone=report is None and _has_orders_without(state, record.replica),
            streams=streams,
            streams_at_s=at_s,
        )
    return View(seen, lost, drained_nodes)


def _phase(report: node_pb2.EngineReport | None) -> Phase:
    """A node that does not list this generation has not begun it."""
    if report is None:
        return Phase.PENDING
    return convert.PHASES.get(report.state, Phase.PENDING)


def _has_orders_without(state: NodeState, replica: str) -> bool:
    if state.orders is None or state.report is None or state.report.orders_number < state.orders.number:
        return False
    return all(engine.launch.replica != replica for engine in state.orders.engines)


def _streams(
    record: Record, gateways: list[tuple[float, node_pb2.GatewayReport]], out_since: Mapping[str, int]
) -> tuple[int | None, float]:
    """Return HAProxy's count of running and queued streams, and the time of its oldest part."""
    server = names.server_name(record.replica, record.generation)
    number = out_since.get(server)
    total: int | None = None
    oldest_s = 0.0
    for heard_at_s, report in gateways:
        if report.pid and (number is None or report.topology_number < number):
            return None, 0.0
        count = sum(s.current_streams + s.queued for s in report.servers if s.server == server)
        total = (total or 0) + count
        oldest_s = heard_at_s if total == count else min(oldest_s, heard_at_s)
    return total, oldest_s


def streams_now(server: str, gateways: list[tuple[float, node_pb2.GatewayReport]]) -> int:
    """Return the count that gateways last gave for a server, for people to look at."""
    return sum(s.current_streams for _, report in gateways for s in report.servers if s.server == server)
