"""Spec, records and observations -> protobuf: the one module of the controller that fills topology and orders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from controlplane.planning.world import Desired, NodeDesired, Phase, PoolDesired, Record
from controlplane.spec import convert as spec_convert
from controlplane.spec.model import Cluster, ExternalEngineSpec, VllmEngineSpec
from controlplane.store.base import StoredEvent, StoredKey
from dataplane import names
from dataplane.pb import admin_pb2, engine_pb2, gateway_pb2, node_pb2, topology_pb2

#: Seconds between SIGTERM and SIGKILL for engines that name no time of their own; streams were drained before.
STOP_GRACE_S = 10.0
#: Seconds beyond a vLLM engine's own shutdown timeout, for it to free its device.
STOP_MARGIN_S = 5.0

PHASES = {
    topology_pb2.REPLICA_STATE_PENDING: Phase.PENDING,
    topology_pb2.REPLICA_STATE_STARTING: Phase.STARTING,
    topology_pb2.REPLICA_STATE_READY: Phase.READY,
    topology_pb2.REPLICA_STATE_DRAINING: Phase.DRAINING,
    topology_pb2.REPLICA_STATE_STOPPING: Phase.STOPPING,
    topology_pb2.REPLICA_STATE_FAILED: Phase.FAILED,
}
STATES = {phase: state for state, phase in PHASES.items()}
ROLES = {
    topology_pb2.ROLE_MIXED: "mixed",
    topology_pb2.ROLE_PREFILL: "prefill",
    topology_pb2.ROLE_DECODE: "decode",
}
_ROLE_NUMBERS = {word: number for number, word in ROLES.items()}


def desired(cluster: Cluster) -> Desired:
    """Return what planning needs of a spec."""
    gateway = spec_convert.gateway(cluster)
    pools = []
    for model in cluster.models:
        for pool in model.pools:
            endpoints = tuple(spec_convert.external_endpoints(pool))
            pools.append(
                PoolDesired(
                    name=pool.name,
                    model=model.name,
                    role=ROLES[spec_convert.role(pool)],
                    replicas=pool.replicas,
                    shape=shape(cluster, pool.name),
                    nodes=tuple(pool.nodes),
                    external=isinstance(pool.engine, ExternalEngineSpec),
                    endpoints=endpoints,
                    ports=1 if endpoints else spec_convert.ports(model),
                )
            )
    nodes = tuple(NodeDesired(n.name, n.address, n.first_port, n.last_port) for n in cluster.nodes)
    return Desired(tuple(pools), nodes, gateway.node, gateway.drain_timeout_s)


def shape(cluster: Cluster, pool: str) -> str:
    """Return a digest of all that an engine of the pool is started with, but its own name, number and address."""
    launch = spec_convert.engine_launch(cluster, pool, replica=f"{pool}-0", generation=0, host="", port=0)
    launch.pin_key = ""
    engine = cluster.pool(pool)[1].engine
    devices = engine.gpus if isinstance(engine, VllmEngineSpec) else ()  # the launch of replica 0 has its own only
    content = launch.SerializeToString(deterministic=True) + repr(tuple(devices)).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def launch(cluster: Cluster, record: Record) -> bytes:
    """Return the serialised EngineLaunch of a record's generation."""
    filled = spec_convert.engine_launch(
        cluster,
        record.pool,
        replica=record.replica,
        generation=record.generation,
        host=record.host,
        port=record.port,
    )
    return filled.SerializeToString(deterministic=True)


def launch_of(record: Record) -> engine_pb2.EngineLaunch:
    """Return what the record's generation was started with."""
    return engine_pb2.EngineLaunch.FromString(record.launch)


def engine_order(record: Record) -> node_pb2.EngineOrder:
    """Return the order that keeps one replica running, or probed when it is external."""
    wanted = launch_of(record)
    grace_s = STOP_GRACE_S
    if wanted.HasField("vllm"):
        grace_s = max(grace_s, wanted.vllm.shutdown_timeout_s + STOP_MARGIN_S)
    endpoints = [names.host_port(record.host, record.port)] if record.external else []
    return node_pb2.EngineOrder(launch=wanted, external_endpoint=endpoints, stop_grace_s=grace_s)


def replica(
    record: Record, phase: Phase, report: node_pb2.EngineReport | None, cluster: Cluster | None
) -> topology_pb2.Replica:
    """Return a replica of the topology. ``report`` is of this generation; sizes come from it before the spec's."""
    wanted = launch_of(record)
    kv_capacity, kv_block, running = _sizes(wanted, record, cluster)
    return topology_pb2.Replica(
        name=record.replica,
        server=names.server_name(record.replica, record.generation),
        model=record.model,
        pool=record.pool,
        node=record.node,
        group=record.replica,
        rank=0,
        generation=record.generation,
        host=record.host,
        port=record.port,
        state=STATES[phase],
        kind=wanted.kind,
        kv_capacity_tokens=(report.kv_capacity_tokens if report else 0) or kv_capacity,
        kv_block_tokens=(report.kv_block_tokens if report else 0) or kv_block,
        max_running=running,
        middleware=not record.external,
        max_connections=_max_connections(record, cluster),
        kv_events_endpoint=_reached(wanted.kv_events.endpoint, record.host),
        kv_replay_endpoint=_reached(wanted.kv_events.replay_endpoint, record.host),
    )


def _reached(bound: str, host: str) -> str:
    """Return how others connect to the endpoint that an engine on ``host`` binds."""
    return bound.replace("*", f"[{host}]" if ":" in host else host, 1)


def _max_connections(record: Record, cluster: Cluster | None) -> int:
    try:
        return cluster.pool(record.pool)[1].max_connections if cluster is not None else 0
    except KeyError:
        return 0  # the pool left the spec; its last replicas only finish what they have


def _sizes(wanted: engine_pb2.EngineLaunch, record: Record, cluster: Cluster | None) -> tuple[int, int, int]:
    if wanted.HasField("simulated"):
        engine = wanted.simulated
        return engine.kv_capacity_tokens, engine.kv_block_tokens, engine.max_running
    if wanted.HasField("vllm"):
        return 0, wanted.vllm.kv_block_tokens, wanted.vllm.max_running
    if cluster is not None:
        try:
            outside = cluster.pool(record.pool)[1].engine
        except KeyError:
            return 0, 0, 0
        if isinstance(outside, ExternalEngineSpec):
            return outside.kv_capacity_tokens, outside.kv_block_tokens, outside.max_running
    return 0, 0, 0


def models(cluster: Cluster, records: Iterable[Record]) -> list[topology_pb2.Model]:
    """Return the spec's models, and those pools that it no longer has but whose replicas still finish their streams."""
    listed = spec_convert.models(cluster)
    by_name = {model.name: model for model in listed}
    known = {(model.name, pool.name) for model in listed for pool in model.pools}
    taken = {pool for _, pool in known}
    for record in records:
        if (record.model, record.pool) in known or record.pool in taken:
            continue
        taken.add(record.pool)
        if record.model not in by_name:
            routing = topology_pb2.Routing(policy="round_robin")
            by_name[record.model] = topology_pb2.Model(name=record.model, routing=routing)
            listed.append(by_name[record.model])
        by_name[record.model].pools.add(name=record.pool, role=_ROLE_NUMBERS[record.role])
    return listed


def topology(
    cluster: Cluster, records: Sequence[Record], replicas: Iterable[topology_pb2.Replica]
) -> topology_pb2.Topology:
    """Return a topology without number and time, in an order that depends on nothing but its content."""
    return topology_pb2.Topology(
        cluster=cluster.cluster,
        models=models(cluster, records),
        replicas=sorted(replicas, key=lambda r: (r.pool, record_index(r.name))),
        journal=spec_convert.journal(cluster),
    )


def record_index(replica_name: str) -> int:
    """Return the index at the end of a replica's name."""
    return int(replica_name.rpartition("-")[2])


def orders(
    node: str,
    records: Iterable[Record],
    cluster: Cluster | None,
    topology: topology_pb2.Topology,
    keys: Iterable[StoredKey],
) -> node_pb2.NodeOrders:
    """Return all that one node is to make true, without a number."""
    kept = sorted((r for r in records if r.node == node and not r.stopping), key=lambda r: (r.pool, r.index))
    result = node_pb2.NodeOrders(engines=[engine_order(record) for record in kept])
    if cluster is not None:
        gateway = spec_convert.gateway(cluster)
        if gateway.node == node:
            order = gateway_pb2.GatewayOrder(gateway=gateway, topology=topology, api_keys=api_keys(cluster, keys))
            result.gateway.CopyFrom(order)
    return result


def api_keys(cluster: Cluster | None, keys: Iterable[StoredKey]) -> list[gateway_pb2.ApiKey]:
    """Return the spec's keys and those made by command; a name or digest of the spec hides a made one."""
    listed = spec_convert.api_keys(cluster) if cluster is not None else []
    names_taken = {key.name for key in listed}
    digests_taken = {key.sha256 for key in listed}
    for key in keys:
        if key.name not in names_taken and key.sha256 not in digests_taken:
            listed.append(api_key(key))
    return listed


def api_key(key: StoredKey) -> gateway_pb2.ApiKey:
    """Return a key made by command."""
    return gateway_pb2.ApiKey(
        name=key.name,
        tenant=key.tenant,
        sha256=key.sha256,
        created_unix_ms=key.created_unix_ms,
        priority=key.priority,
    )


def event(stored: StoredEvent) -> admin_pb2.Event:
    """Return an event for the wire."""
    return admin_pb2.Event(
        number=stored.number,
        unix_ms=stored.unix_ms,
        subject=stored.subject,
        reason=stored.reason,
        message=stored.message,
    )


def engine_reports(report: node_pb2.NodeReport | None) -> Mapping[str, node_pb2.EngineReport]:
    """Return a node's reports by replica; of two generations of one replica, the newest."""
    found: dict[str, node_pb2.EngineReport] = {}
    for engine in report.engines if report is not None else ():
        if engine.replica not in found or found[engine.replica].generation < engine.generation:
            found[engine.replica] = engine
    return found


def outline(cluster: Cluster) -> dict[str, dict[str, str]]:
    """Return each part of a spec with its settings as short text, for naming what differs between two specs."""
    parts: dict[str, dict[str, str]] = {}
    for node in cluster.nodes:
        parts[f"node/{node.name}"] = {"address": node.address, "ports": f"{node.first_port}-{node.last_port}"}
    for model in cluster.models:
        routing = model.routing
        parts[f"model/{model.name}"] = {
            "policy": routing.policy,
            "parameters": " ".join(f"{key}={value:g}" for key, value in sorted(routing.parameters.items())),
            "session_keys": " ".join(routing.session_keys),
            "precise": str(routing.precise).lower(),
            "admission": "off" if routing.admission is None else routing.admission.model_dump_json(),
            "tokenizer": spec_convert.tokenizer(model) if routing.precise else "",
            "adapters": " ".join(adapter.name for adapter in model.adapters),
        }
        for pool in model.pools:
            parts[f"pool/{pool.name}"] = {
                "model": model.name,
                "role": pool.role,
                "replicas": str(pool.replicas),
                "engine": f"{pool.engine.kind} {shape(cluster, pool.name)[:8]}",
                "nodes": " ".join(pool.nodes),
                "max_connections": str(pool.max_connections),
                "endpoints": " ".join(names.host_port(*endpoint) for endpoint in spec_convert.external_endpoints(pool)),
            }
    parts["gateway"] = _gateway_outline(cluster)
    parts["keys"] = {
        key.name: f"tenant {key.tenant} {key.priority} {key.sha256[:8]}" for key in spec_convert.api_keys(cluster)
    }
    return parts


def _gateway_outline(cluster: Cluster) -> dict[str, str]:
    gateway = spec_convert.gateway(cluster)
    settings = {
        field.name: f"{value:g}" if isinstance(value, float) else str(value)
        for field, value in gateway.ListFields()
        if field.name != "listeners"
    }
    listeners = (
        names.host_port(item.host, item.port) + (" (TLS)" if item.certificate else "") for item in gateway.listeners
    )
    return {"listen": " ".join(listeners), **settings}
