"""Orders for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataplane.gateway.assets import load_templates
from dataplane.gateway.site import Site
from dataplane.names import server_name
from dataplane.pb import gateway_pb2, topology_pb2

TEMPLATES = load_templates()
READY = topology_pb2.REPLICA_STATE_READY
DRAINING = topology_pb2.REPLICA_STATE_DRAINING


def replica(
    pool: str, index: int, port: int, *, generation: int = 1, state: int = READY, host: str = "127.0.0.1"
) -> topology_pb2.Replica:
    name = f"{pool}-{index}"
    return topology_pb2.Replica(
        name=name,
        server=server_name(name, generation),
        pool=pool,
        generation=generation,
        host=host,
        port=port,
        state=state,  # type: ignore[arg-type]
        kind=topology_pb2.ENGINE_KIND_SIMULATED,
    )


def model(
    name: str, pools: Sequence[str], adapters: Sequence[str] = (), session_keys: Sequence[str] = ()
) -> topology_pb2.Model:
    return topology_pb2.Model(
        name=name,
        adapters=[topology_pb2.Adapter(name=a) for a in adapters],
        pools=[topology_pb2.Pool(name=p, role=topology_pb2.ROLE_MIXED) for p in pools],
        routing=topology_pb2.Routing(session_keys=session_keys),
    )


def order(
    port: int,
    models: Iterable[topology_pb2.Model],
    replicas: Iterable[topology_pb2.Replica],
    *,
    number: int = 1,
    keys: Iterable[gateway_pb2.ApiKey] = (),
    **settings: object,
) -> gateway_pb2.GatewayOrder:
    values: dict[str, object] = {
        "name": "gw",
        "listeners": [gateway_pb2.Listener(host="127.0.0.1", port=port)],
        "threads": 1,
        "max_body_bytes": 32 << 20,
        "buffer_bytes": 1 << 20,
        "decision_timeout_ms": 500,
        "connect_timeout_ms": 1000,
        "silence_timeout_s": 60,
        "queue_timeout_s": 10,
        "drain_timeout_s": 60,
        "replica_header": True,
        **settings,
    }
    return gateway_pb2.GatewayOrder(
        gateway=gateway_pb2.Gateway(**values),  # type: ignore[arg-type]
        topology=topology_pb2.Topology(number=number, cluster="test", models=models, replicas=replicas),
        api_keys=keys,
    )


SITE = Site(
    site_id="t0",
    runtime_socket="/tmp/slipstream-test/haproxy.sock",
    spop_socket="/tmp/slipstream-test/spop.sock",
    log_socket="/tmp/slipstream-test/log.sock",
    cpu_count=2,
    fd_limit=20_000,
)
