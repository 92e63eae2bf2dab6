"""Protobuf -> the JSON of the page."""

from __future__ import annotations

from typing import Any

from controlplane.admin.router_feed import Decision
from controlplane.store.base import StoredEvent
from dataplane.names import host_port
from dataplane.pb import admin_pb2, routing_pb2, topology_pb2


def state_word(state: topology_pb2.ReplicaState.ValueType) -> str:
    """Return ready, failed, ..."""
    return topology_pb2.ReplicaState.Name(state).removeprefix("REPLICA_STATE_").lower()


def replica(view: admin_pb2.ReplicaView, load: routing_pb2.ReplicaLoad | None) -> dict[str, Any]:
    """Return one replica with its load; ``in_flight`` is None when the router was not heard."""
    held = view.replica
    return {
        "name": held.name,
        "server": held.server,
        "model": held.model,
        "pool": held.pool,
        "node": held.node,
        "address": host_port(held.host, held.port),
        "generation": held.generation,
        "state": state_word(held.state),
        "state_age_s": round(view.state_age_s, 1),
        "restarts": view.restarts,
        "streams": view.streams,
        "in_flight": load.in_flight if load else None,
        "decisions": load.decisions if load else None,
        "first_byte_ms": round(load.first_byte_ms, 1) if load and load.first_byte_ms >= 0 else None,
        "max_running": held.max_running,
        "detail": view.detail,
        "drained_by_operator": view.drained_by_operator,
    }


def model(view: admin_pb2.ModelView) -> dict[str, Any]:
    """Return one model."""
    return {
        "name": view.name,
        "policy": view.policy,
        "adapters": list(view.adapters),
        "wanted": view.replicas_wanted,
        "ready": view.replicas_ready,
    }


def pool(view: admin_pb2.PoolView) -> dict[str, Any]:
    """Return one pool."""
    return {
        "name": view.name,
        "model": view.model,
        "role": topology_pb2.Role.Name(view.role).removeprefix("ROLE_").lower(),
        "kind": topology_pb2.EngineKind.Name(view.kind).removeprefix("ENGINE_KIND_").lower(),
        "wanted": view.replicas_wanted,
        "ready": view.replicas_ready,
    }


def node(view: admin_pb2.NodeView) -> dict[str, Any]:
    """Return one node."""
    return {
        "name": view.name,
        "address": view.address,
        "connected": view.connected,
        "report_age_s": round(view.report_age_s, 1),
        "replicas": view.replicas,
    }


def gateway(view: admin_pb2.GatewayView) -> dict[str, Any]:
    """Return one gateway."""
    return {
        "name": view.gateway.name,
        "node": view.gateway.node,
        "listen": [host_port(item.host, item.port) for item in view.gateway.listeners],
        "ready": view.report.ready,
        "topology_number": view.report.topology_number,
        "streams": sum(server.current_streams for server in view.report.servers),
        "error": view.report.error,
    }


def router(status: routing_pb2.RouterStatusResponse | None) -> dict[str, Any] | None:
    """Return the router's counts, None when it was not heard."""
    if status is None:
        return None
    return {
        "topology_number": status.topology_number,
        "topology_from_disk": status.topology_from_disk,
        "decisions": status.decisions,
        "errors": status.errors,
        "receipts": status.receipts,
        "protocol_errors": status.protocol_errors,
        "reasons": dict(status.decisions_by_reason),
    }


def event(stored: StoredEvent) -> dict[str, Any]:
    """Return one event."""
    return {
        "number": stored.number,
        "unix_ms": stored.unix_ms,
        "subject": stored.subject,
        "reason": stored.reason,
        "message": stored.message,
    }


def decision(made: Decision) -> dict[str, Any]:
    """Return one decision, short: a line of the list."""
    receipt = made.receipt
    return {
        "number": made.number,
        "request_id": receipt.request_id,
        "unix_ms": receipt.decided_unix_us // 1000,
        "kind": receipt.kind,
        "model": receipt.adapter or receipt.model,
        "outcome": receipt.outcome,
        "server": receipt.server,
        "reason": receipt.error_code or receipt.reason,
    }


def receipt(record: routing_pb2.Receipt) -> dict[str, Any]:
    """Return a whole receipt: candidates with their signals, the rejected, and how it ended when that is known."""
    whole = {
        "request_id": record.request_id,
        "unix_ms": record.decided_unix_us // 1000,
        "kind": record.kind,
        "model": record.model,
        "adapter": record.adapter,
        "outcome": record.outcome,
        "error_code": record.error_code,
        "pool": record.pool,
        "server": record.server,
        "policy": record.policy,
        "policy_number": record.policy_number,
        "topology_number": record.topology_number,
        "eligible": record.eligible,
        "rejected": dict(record.rejected),
        "runner_up": record.runner_up,
        "margin": record.margin,
        "prompt_bytes": record.prompt_bytes,
        "prefix_blocks": record.prefix_blocks,
        "reason": record.reason,
        "candidates": [
            {
                "server": candidate.server,
                "score": candidate.score,
                "signals": [
                    {"name": s.name, "value": s.value, "age_ms": s.age_ms if s.age_ms >= 0 else None}
                    for s in candidate.signals
                ],
            }
            for candidate in record.candidates
        ],
        "completion": None,
    }
    if record.HasField("completion"):
        end = record.completion
        whole["completion"] = {
            "server": end.server,
            "first_byte_ms": end.first_byte_ms,
            "total_ms": end.total_ms,
            "bytes": end.bytes,
            "status": end.status,
            "termination": end.termination,
            "retries": end.retries,
        }
    return whole
