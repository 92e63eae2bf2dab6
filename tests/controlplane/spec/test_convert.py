"""Spec -> protobuf."""

from __future__ import annotations

from pathlib import Path

from controlplane.spec import from_yaml, load
from controlplane.spec.convert import api_keys, engine_launch, external_endpoints, gateway, kind, models, role
from dataplane import names
from dataplane.engines.command import EngineSite, command
from dataplane.pb import engine_pb2, gateway_pb2, topology_pb2

SPEC = """\
cluster: test
gateway:
  listen: ["127.0.0.1:8000", {address: "[::1]:8443", certificate: /etc/c.pem}]
  threads: 3
  buffer_bytes: 512KiB
  decision_timeout_ms: 40
  connect_timeout_ms: 900
  silence_timeout_s: 500
  queue_timeout_s: 20
  drain_timeout_s: 6000
  replica_header: false
limits: {max_body: 8MiB, max_connections: 1000}
nodes: [{name: a}, {name: b, address: 10.0.0.2}]
models:
  - name: m
    adapters: [{name: m-sql, path: /lora/sql}]
    routing: {policy: session, parameters: {load_factor: 1.5}, session_keys: [user]}
    pools:
      - {name: p, replicas: 2, engine: {kind: simulated, kv_events_endpoint: "tcp://*:5557", max_running: 9}}
      - name: v
        role: prefill
        replicas: 2
        nodes: [a]
        engine: {kind: vllm, model: org/m, python: /v/bin/python, tensor_parallel_size: 2, gpus: [4, 5, 6, 7],
                 max_model_tokens: 2048, max_running: 8, kv_block_tokens: 32, gpu_memory_utilization: 0.5,
                 shutdown_timeout_s: 9, args: [--enforce-eager], env: {OMP_NUM_THREADS: 1}}
      - {name: e, role: decode, engine: {kind: external, endpoints: ["http://x:1", "http://[::1]:2"]}}
api_keys:
  required: true
  keys: [{name: k, tenant: t, sha256: 8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a}]
"""
CLUSTER = from_yaml(SPEC)


def _launch(pool: str, index: int) -> engine_pb2.EngineLaunch:
    return engine_launch(CLUSTER, pool, replica=f"{pool}-{index}", generation=3, host="127.0.0.1", port=21_001)


def test_models() -> None:
    assert models(CLUSTER) == [
        topology_pb2.Model(
            name="m",
            adapters=[topology_pb2.Adapter(name="m-sql", path="/lora/sql")],
            pools=[
                topology_pb2.Pool(name="p", role=topology_pb2.ROLE_MIXED),
                topology_pb2.Pool(name="v", role=topology_pb2.ROLE_PREFILL),
                topology_pb2.Pool(name="e", role=topology_pb2.ROLE_DECODE),
            ],
            routing=topology_pb2.Routing(policy="session", parameters={"load_factor": 1.5}, session_keys=["user"]),
        )
    ]
    pools = CLUSTER.models[0].pools
    assert [role(pool) for pool in pools] == [pool.role for pool in models(CLUSTER)[0].pools]
    assert [kind(pool) for pool in pools] == [
        topology_pb2.ENGINE_KIND_SIMULATED,
        topology_pb2.ENGINE_KIND_VLLM,
        topology_pb2.ENGINE_KIND_EXTERNAL,
    ]


def test_gateway() -> None:
    assert gateway(CLUSTER) == gateway_pb2.Gateway(
        name="gateway",
        node="a",
        listeners=[
            gateway_pb2.Listener(host="127.0.0.1", port=8_000),
            gateway_pb2.Listener(host="::1", port=8_443, certificate="/etc/c.pem"),
        ],
        threads=3,
        max_body_bytes=8 << 20,
        buffer_bytes=512 << 10,
        decision_timeout_ms=40,
        connect_timeout_ms=900,
        silence_timeout_s=500,
        queue_timeout_s=20,
        drain_timeout_s=6_000,
        replica_header=False,
        require_api_key=True,
        max_connections=1_000,
    )


def test_every_field_of_the_gateway_is_filled() -> None:
    filled = {field.name for field, _ in gateway(CLUSTER).ListFields()}
    assert filled | {"replica_header"} == set(gateway_pb2.Gateway.DESCRIPTOR.fields_by_name)


def test_api_keys() -> None:
    (key,) = api_keys(CLUSTER)
    assert (key.name, key.tenant, key.from_spec, key.created_unix_ms) == ("k", "t", True, 0)
    assert key.sha256 == CLUSTER.api_keys.keys[0].sha256


def test_simulated_launch() -> None:
    launch = _launch("p", 1)
    assert launch.kind == topology_pb2.ENGINE_KIND_SIMULATED
    assert (launch.replica, launch.generation, launch.served_model) == ("p-1", 3, "m")
    assert (launch.host, launch.port) == ("127.0.0.1", 21_001)
    assert launch.pin_key == names.pin_key("p-1.g3")
    assert launch.simulated.max_running == 9
    assert launch.simulated.kv_events_endpoint == "tcp://*:5558"
    assert launch.simulated.kv_capacity_tokens == 400_000
    assert not launch.HasField("vllm")


def test_vllm_launch() -> None:
    launch = _launch("v", 1)
    assert launch.kind == topology_pb2.ENGINE_KIND_VLLM
    assert (launch.weights, launch.python) == ("org/m", "/v/bin/python")
    assert list(launch.args) == ["--enforce-eager"]
    assert dict(launch.env) == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "6,7"}
    assert [adapter.name for adapter in launch.adapters] == ["m-sql"]
    assert launch.vllm == engine_pb2.VllmEngine(
        tensor_parallel_size=2,
        pipeline_parallel_size=1,
        max_model_tokens=2_048,
        max_running=8,
        kv_block_tokens=32,
        gpu_memory_utilization=0.5,
        shutdown_timeout_s=9,
    )
    assert _launch("v", 0).env["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert _launch("v", 2).env["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_external_pools() -> None:
    pools = CLUSTER.models[0].pools
    assert external_endpoints(pools[2]) == [("x", 1), ("::1", 2)]
    assert external_endpoints(pools[0]) == []
    launch = _launch("e", 0)
    assert launch.kind == topology_pb2.ENGINE_KIND_EXTERNAL
    assert not launch.HasField("vllm")
    assert not launch.HasField("simulated")


def test_every_engine_of_the_examples_has_a_command_line() -> None:
    site = EngineSite(python="/usr/bin/python3", engine_path="/state/engine-path")
    for path in (Path(__file__).parents[3] / "examples").glob("*.yaml"):
        cluster = load(str(path), {"HOME": "/home/x"})
        for model in cluster.models:
            for pool in model.pools:
                for index in range(0 if pool.engine.kind == "external" else pool.replicas):
                    launch = engine_launch(
                        cluster, pool.name, replica=f"{pool.name}-{index}", generation=1, host="127.0.0.1", port=21_000
                    )
                    assert command(launch, site).argv


PRECISE = from_yaml(
    """\
cluster: test
nodes: [{name: a, address: 10.0.0.2}]
models:
  - name: m
    routing: {precise: true}
    pools:
      - {name: s, engine: {kind: simulated}}
      - {name: v, engine: {kind: vllm, model: /weights/m, python: /v/bin/python}}
  - {name: plain, pools: [{name: w, engine: {kind: vllm, model: /weights/m, python: /v/bin/python}}]}
"""
)


def test_a_precise_models_engines_publish() -> None:
    routing = models(PRECISE)[0].routing
    assert (routing.precise, routing.tokenizer) == (True, "/weights/m")
    assert not models(PRECISE)[1].routing.precise
    for pool in ("s", "v"):
        made = engine_launch(PRECISE, pool, replica=f"{pool}-1", generation=7, host="10.0.0.2", port=21_003)
        assert made.kv_events == engine_pb2.KvEvents(
            endpoint="tcp://*:21004", replay_endpoint="tcp://*:21005", topic=f"{pool}-1.g7"
        )
        local = engine_launch(PRECISE, pool, replica=f"{pool}-1", generation=7, host="127.0.0.1", port=21_003)
        assert local.kv_events.endpoint == "ipc://@slipstream-21003-events"
        assert local.kv_events.replay_endpoint == "ipc://@slipstream-21003-replay"
        command(made, EngineSite("/p", "/e"))
        command(local, EngineSite("/p", "/e"))
    assert not engine_launch(PRECISE, "w", replica="w-0", generation=1, host="::1", port=1).HasField("kv_events")
