"""Spec -> protobuf. The one module of the spec that knows the wire."""

from __future__ import annotations

from controlplane.routing.admission.settings import PRIORITIES
from controlplane.spec import fields
from controlplane.spec.engines import ExternalEngineSpec, SimulatedEngineSpec, VllmEngineSpec
from controlplane.spec.model import Cluster, ModelSpec, PoolSpec, RoutingSpec
from controlplane.spec.room import GPU_VARIABLE, PRECISE_PORTS
from dataplane import names
from dataplane.pb import engine_pb2, gateway_pb2, topology_pb2

#: The one gateway of a cluster.
GATEWAY = "gateway"
#: Part of the gateway's decision timeout that a prompt's tokens may take; the rest is for the way there and back.
DEADLINE_SHARE = 0.8
#: Addresses that no other machine reaches.
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

_ROLES = {
    "mixed": topology_pb2.ROLE_MIXED,
    "prefill": topology_pb2.ROLE_PREFILL,
    "decode": topology_pb2.ROLE_DECODE,
}
_KINDS = {
    "simulated": topology_pb2.ENGINE_KIND_SIMULATED,
    "vllm": topology_pb2.ENGINE_KIND_VLLM,
    "external": topology_pb2.ENGINE_KIND_EXTERNAL,
}


def role(pool: PoolSpec) -> topology_pb2.Role.ValueType:
    """Return the pool's role."""
    return _ROLES[pool.role]


def kind(pool: PoolSpec) -> topology_pb2.EngineKind.ValueType:
    """Return what the pool's replicas run."""
    return _KINDS[pool.engine.kind]


def models(cluster: Cluster) -> list[topology_pb2.Model]:
    """Return the models with their adapters, pools and routing, in the order of the spec."""
    deadline_ms = DEADLINE_SHARE * cluster.gateway.decision_timeout_ms
    return [_model(model, deadline_ms) for model in cluster.models]


def _model(model: ModelSpec, deadline_ms: float) -> topology_pb2.Model:
    return topology_pb2.Model(
        name=model.name,
        adapters=_adapters(model),
        pools=[topology_pb2.Pool(name=pool.name, role=role(pool)) for pool in model.pools],
        routing=topology_pb2.Routing(
            policy=model.routing.policy,
            parameters=model.routing.parameters,
            session_keys=model.routing.session_keys,
            precise=model.routing.precise,
            tokenizer=tokenizer(model) if model.routing.precise else "",
            precise_deadline_ms=deadline_ms if model.routing.precise else 0.0,
            shadow=_shadow(model.routing),
            admission=_admission(model.routing),
        ),
        isolate_cache=model.isolate_cache,
    )


def _shadow(routing: RoutingSpec) -> topology_pb2.Shadow | None:
    shadow = routing.shadow
    if shadow is None:
        return None
    return topology_pb2.Shadow(policy=shadow.policy, parameters=shadow.parameters, share=shadow.share)


def _admission(routing: RoutingSpec) -> topology_pb2.Admission | None:
    spec = routing.admission
    if spec is None:
        return None
    return topology_pb2.Admission(
        ttft_target_s=spec.ttft_target_s,
        max_requests=spec.max_requests,
        max_tokens=spec.max_tokens,
        tenant_requests=spec.tenant_requests,
        tenant_tokens=spec.tenant_tokens,
        timeouts_s=[getattr(spec.timeouts_s, name) for name in PRIORITIES],
        guaranteed_share=spec.guaranteed_share,
        weights=spec.weights,
    )


def journal(cluster: Cluster) -> topology_pb2.Journal | None:
    """Return what routers write down; None: nothing."""
    spec = cluster.routing.journal
    if spec.mode == "off":
        return None
    share = 1.0 if spec.mode == "full" else spec.share
    return topology_pb2.Journal(share=share, file_bytes=spec.file_bytes, files=spec.files)


def tokenizer(model: ModelSpec) -> str:
    """Return the folder of a precise model's tokenizer; empty: that of the simulated engine."""
    if model.routing.tokenizer:
        return model.routing.tokenizer
    weights = (pool.engine.model for pool in model.pools if isinstance(pool.engine, VllmEngineSpec))
    return next((path for path in weights if path.startswith("/")), "")


def ports(model: ModelSpec) -> int:
    """Return how many ports in a row each replica of a model needs: HTTP, and for KV events two more."""
    return PRECISE_PORTS if model.routing.precise else 1


def _kv_events(server: str, host: str, port: int) -> engine_pb2.KvEvents:
    """Return where a replica of a precise model publishes.

    vLLM binds a TCP endpoint on all addresses of the machine or not at all; an engine that listens on the machine's
    own address alone therefore uses the kernel's abstract sockets, named by its port.
    """
    if host in LOOPBACK:
        endpoint, replay = f"ipc://@slipstream-{port}-events", f"ipc://@slipstream-{port}-replay"
    else:
        endpoint, replay = f"tcp://*:{port + 1}", f"tcp://*:{port + 2}"
    return engine_pb2.KvEvents(endpoint=endpoint, replay_endpoint=replay, topic=server)


def _adapters(model: ModelSpec) -> list[topology_pb2.Adapter]:
    return [topology_pb2.Adapter(name=adapter.name, path=adapter.path or "") for adapter in model.adapters]


def gateway(cluster: Cluster) -> gateway_pb2.Gateway:
    """Return the cluster's gateway, which is on the first node."""
    spec = cluster.gateway
    return gateway_pb2.Gateway(
        name=GATEWAY,
        node=cluster.nodes[0].name,
        listeners=[
            gateway_pb2.Listener(host=listen.host, port=listen.port, certificate=listen.certificate or "")
            for listen in spec.listen
        ],
        threads=spec.threads,
        max_body_bytes=cluster.limits.max_body,
        buffer_bytes=spec.buffer_bytes,
        decision_timeout_ms=spec.decision_timeout_ms,
        connect_timeout_ms=spec.connect_timeout_ms,
        silence_timeout_s=spec.silence_timeout_s,
        queue_timeout_s=spec.queue_timeout_s,
        drain_timeout_s=spec.drain_timeout_s,
        replica_header=spec.replica_header,
        require_api_key=cluster.api_keys.required,
        max_connections=cluster.limits.max_connections,
    )


def api_keys(cluster: Cluster) -> list[gateway_pb2.ApiKey]:
    """Return the keys that the spec declares; they have no time of creation."""
    return [
        gateway_pb2.ApiKey(name=key.name, tenant=key.tenant, sha256=key.sha256, from_spec=True, priority=key.priority)
        for key in cluster.api_keys.keys
    ]


def external_endpoints(pool: PoolSpec) -> list[tuple[str, int]]:
    """Return host and port of each server of an external pool, in order; empty for the other kinds."""
    if not isinstance(pool.engine, ExternalEngineSpec):
        return []
    return [fields.split_endpoint(endpoint) for endpoint in pool.engine.endpoints]


def engine_launch(
    cluster: Cluster, pool_name: str, *, replica: str, generation: int, host: str, port: int
) -> engine_pb2.EngineLaunch:
    """Return what one incarnation of a replica is started with; for an external pool, what is there.

    ``replica`` is ``<pool>-<index>``. Raises KeyError for a pool that is not in the cluster.
    """
    model, pool = cluster.pool(pool_name)
    launch = engine_pb2.EngineLaunch(
        replica=replica,
        generation=generation,
        kind=kind(pool),
        served_model=model.name,
        host=host,
        port=port,
        adapters=_adapters(model),
        pin_key=names.pin_key(names.server_name(replica, generation)),
        isolate_cache=model.isolate_cache,
    )
    if model.routing.precise and not isinstance(pool.engine, ExternalEngineSpec):
        launch.kv_events.CopyFrom(_kv_events(names.server_name(replica, generation), host, port))
    engine, index = pool.engine, int(replica.rpartition("-")[2])
    if isinstance(engine, SimulatedEngineSpec):
        launch.simulated.CopyFrom(_simulated(engine, index))
    elif isinstance(engine, VllmEngineSpec):
        launch.weights = engine.model
        launch.python = engine.python
        launch.args.extend(engine.args)
        launch.env.update(engine.env)
        if engine.gpus:
            launch.env[GPU_VARIABLE] = _gpus(engine, index)
        launch.vllm.CopyFrom(_vllm(engine))
    return launch


def _simulated(engine: SimulatedEngineSpec, index: int) -> engine_pb2.SimulatedEngine:
    return engine_pb2.SimulatedEngine(
        step_base_ms=engine.step_base_ms,
        prefill_us_per_token=engine.prefill_us_per_token,
        decode_us_per_sequence=engine.decode_us_per_sequence,
        max_batched_tokens=engine.max_batched_tokens,
        kv_capacity_tokens=engine.kv_capacity_tokens,
        kv_block_tokens=engine.kv_block_tokens,
        max_running=engine.max_running,
        max_model_tokens=engine.max_model_tokens,
        kv_transfer_us_per_token=engine.kv_transfer_us_per_token,
        startup_s=engine.startup_s,
        kv_events_endpoint=_events_endpoint(engine.kv_events_endpoint, index),
        fault_switches=engine.fault_switches,
    )


def _events_endpoint(first: str, index: int) -> str:
    # Each replica publishes on a port of its own: the first one's, plus its index.
    if not first:
        return ""
    head, _, port = first.rpartition(":")
    return f"{head}:{int(port) + index}"


def _gpus(engine: VllmEngineSpec, index: int) -> str:
    # A replica keeps its GPUs over restarts; an index beyond the spec's replicas (one that is to go) shares some.
    each = engine.tensor_parallel_size * engine.pipeline_parallel_size
    first = index % max(1, len(engine.gpus) // each) * each
    return ",".join(str(gpu) for gpu in engine.gpus[first : first + each])


def _vllm(engine: VllmEngineSpec) -> engine_pb2.VllmEngine:
    return engine_pb2.VllmEngine(
        tensor_parallel_size=engine.tensor_parallel_size,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        max_model_tokens=engine.max_model_tokens,
        max_running=engine.max_running,
        kv_block_tokens=engine.kv_block_tokens,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        shutdown_timeout_s=engine.shutdown_timeout_s,
    )
