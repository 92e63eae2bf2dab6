"""Orders from the wire, reports to the wire."""

from __future__ import annotations

import re

from dataplane.errors import DataplaneError
from dataplane.names import HOST, SERVER, checked, server_name
from dataplane.node.decide import Life, Wanted
from dataplane.node.incarnation import Incarnation
from dataplane.pb import node_pb2, topology_pb2

#: Longest time between SIGTERM and SIGKILL that is taken: a day, as for an engine's own shutdown.
MAX_STOP_GRACE_S = 86_400.0
#: More engines than any VM holds; an order beyond is a mistake.
MAX_ENGINES = 1_024

_ENDPOINT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:]{2,39})\]|(?P<host>[^:\[\]]{1,253})):(?P<port>[0-9]{1,5})")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class InvalidOrders(DataplaneError):
    """Orders that cannot be carried out as a whole; the ones before them stay."""


def wanted(orders: node_pb2.NodeOrders) -> list[Wanted]:
    """Return what is ordered. Raises InvalidOrders, or InvalidName for a name that cannot be one."""
    if len(orders.engines) > MAX_ENGINES:
        raise InvalidOrders(f"{len(orders.engines)} engines on one node are more than {MAX_ENGINES}")
    found = [_wanted(order) for order in orders.engines]
    if len({item.replica for item in found}) != len(found):
        raise InvalidOrders("a replica is ordered twice")
    return found


def _wanted(order: node_pb2.EngineOrder) -> Wanted:
    launch = order.launch
    checked(SERVER, server_name(launch.replica, launch.generation), "server name")
    if not 0 <= order.stop_grace_s <= MAX_STOP_GRACE_S:
        raise InvalidOrders(
            f"{launch.replica}: stop_grace_s {order.stop_grace_s} is not within 0..{MAX_STOP_GRACE_S:g}"
        )
    return Wanted(
        replica=launch.replica,
        generation=launch.generation,
        external=launch.kind == topology_pb2.ENGINE_KIND_EXTERNAL,
        stop_grace_s=order.stop_grace_s,
    )


def endpoints(order: node_pb2.EngineOrder) -> tuple[tuple[str, int], ...]:
    """Return the (host, port) pairs to probe. Raises InvalidOrders or InvalidName."""
    if order.external_endpoint:
        return tuple(_endpoint(text) for text in order.external_endpoint)
    return (reachable(order.launch.host, order.launch.port),)


def reachable(host: str, port: int) -> tuple[str, int]:
    """Return where an engine that listens on ``host`` answers on its own machine."""
    return (_ANY_ADDRESS.get(host, host), port)


def _endpoint(text: str) -> tuple[str, int]:
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= 65_535:
        raise InvalidOrders(f"external endpoint {text[:80]!r} is not host:port")
    return (checked(HOST, found["v6"] or found["host"], "external endpoint"), int(found["port"]))


def engine_report(engine: Incarnation) -> node_pb2.EngineReport:
    """Return what the controller is told of one engine."""
    process = engine.process
    return node_pb2.EngineReport(
        replica=engine.replica,
        generation=engine.generation,
        state=_state(engine),
        pid=process.pid if process is not None and process.alive else 0,
        exit_code=engine.exit_code or 0,
        exited=engine.exited,
        detail=engine.detail or engine.readiness.detail,
        last_log_lines=engine.last_log_lines,
        started_unix_ms=engine.started_unix_ms,
        kv_capacity_tokens=engine.kv_capacity_tokens,
        kv_block_tokens=engine.kv_block_tokens,
    )


def _state(engine: Incarnation) -> topology_pb2.ReplicaState.ValueType:
    match engine.life:
        case Life.STARTING:
            return topology_pb2.REPLICA_STATE_PENDING
        case Life.STOPPING:
            return topology_pb2.REPLICA_STATE_STOPPING
        case Life.ENDED:
            return topology_pb2.REPLICA_STATE_FAILED
        case Life.RUNNING | Life.PROBED:
            if engine.readiness.ready:
                return topology_pb2.REPLICA_STATE_READY
            # It answered and does not any more: FAILED without an exit, which is not a reason to restart it at once.
            return (
                topology_pb2.REPLICA_STATE_FAILED if engine.readiness.was_ready else topology_pb2.REPLICA_STATE_STARTING
            )
