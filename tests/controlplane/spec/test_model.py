"""The objects: defaults, derived names, and names that never pass."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from controlplane.routing.policies.registry import POLICIES as KNOWN_POLICIES
from controlplane.spec import (
    AdapterSpec,
    ApiKeySpec,
    Cluster,
    ExternalEngineSpec,
    ListenSpec,
    ModelSpec,
    NodeSpec,
    PoolSpec,
    SimulatedEngineSpec,
    VllmEngineSpec,
)
from controlplane.spec.model import POLICIES
from controlplane.spec.outline import default_pool_name
from dataplane import names

SIMULATED = SimulatedEngineSpec()


def cluster(*pools: PoolSpec, model: str = "m") -> Cluster:
    return Cluster(cluster="c", models=(ModelSpec(name=model, pools=pools),))


def test_defaults() -> None:
    made = cluster(PoolSpec(engine=SIMULATED))
    assert [node.name for node in made.nodes] == ["local"]
    assert (made.nodes[0].first_port, made.nodes[0].last_port) == (21_000, 21_999)
    assert (made.gateway.listen[0].host, made.gateway.listen[0].port) == ("127.0.0.1", 8_000)
    assert made.gateway.buffer_bytes == 0
    assert made.limits.max_body == 64 << 20
    assert made.models[0].routing.policy == "cost"
    assert made.models[0].routing.session_keys == ("x-session-id", "x-correlation-id", "user", "prompt_cache_key")


def test_policies_are_those_that_the_router_knows() -> None:
    assert set(POLICIES) == set(KNOWN_POLICIES)


@pytest.mark.parametrize(
    ("model", "role", "name"),
    [
        ("tiny", "mixed", "tiny-mixed"),
        ("Qwen/Qwen3-8B", "decode", "qwen-qwen3-8b-decode"),
        ("a_.b", "prefill", "a-b-prefill"),
        ("x" * 128, "prefill", "x" * 55 + "-prefill"),
    ],
)
def test_default_pool_names(model: str, role: str, name: str) -> None:
    assert default_pool_name(model, role) == name
    assert names.LABEL.fullmatch(name)


@settings(max_examples=200, derandomize=True)
@given(st.from_regex(names.MODEL, fullmatch=True), st.sampled_from(["mixed", "prefill", "decode"]))
def test_default_pool_names_are_labels(model: str, role: str) -> None:
    assert names.LABEL.fullmatch(default_pool_name(model, role))


def test_external_replicas_are_counted() -> None:
    made = cluster(PoolSpec(engine=ExternalEngineSpec(endpoints=("http://a:1", "http://[::1]:2"))))
    assert made.models[0].pools[0].replicas == 2


def test_objects_are_frozen_and_closed() -> None:
    made = cluster(PoolSpec(engine=SIMULATED))
    with pytest.raises(ValidationError):
        made.cluster = "d"
    with pytest.raises(ValidationError):
        NodeSpec(name="n", adress="x")  # type: ignore[call-arg]


def test_lookups() -> None:
    made = Cluster(
        cluster="c",
        nodes=(NodeSpec(name="a"), NodeSpec(name="b", address="10.0.0.2")),
        models=(ModelSpec(name="m", pools=(PoolSpec(name="p", nodes=("b",), engine=SIMULATED),)),),
    )
    model, pool = made.pool("p")
    assert (model.name, pool.name) == ("m", "p")
    assert [node.name for node in made.pool_nodes(pool)] == ["b"]
    assert made.node("b").address == "10.0.0.2"
    for lookup in (made.pool, made.node):
        with pytest.raises(KeyError):
            lookup("none")


def test_scaled() -> None:
    made = cluster(PoolSpec(name="p", engine=SIMULATED), PoolSpec(name="q", engine=SIMULATED))
    scaled = made.scaled("p", 7)
    assert [pool.replicas for pool in scaled.models[0].pools] == [7, 1]
    assert scaled.scaled("p", 1) == made
    with pytest.raises(KeyError):
        made.scaled("none", 1)
    with pytest.raises(ValidationError, match="1000 ports"):
        made.scaled("p", 1_001)


def test_pools_of_one_node_set_share_its_ports() -> None:
    nodes = (NodeSpec(name="a", ports="21000-21001"), NodeSpec(name="b", ports="21002-21003"))

    def with_replicas(on_a: int, anywhere: int) -> Cluster:
        pools = (
            PoolSpec(name="p", replicas=on_a, nodes=("a",), engine=SIMULATED),
            PoolSpec(name="q", replicas=anywhere, engine=SIMULATED),
            PoolSpec(name="e", engine=ExternalEngineSpec(endpoints=("http://x:1",))),
        )
        return Cluster(cluster="c", nodes=nodes, models=(ModelSpec(name="m", pools=pools),))

    with_replicas(2, 2)
    with pytest.raises(ValidationError, match="3 replicas in all are to run on a, where there are 2 ports"):
        with_replicas(3, 1)
    with pytest.raises(ValidationError, match="5 replicas in all are to run on a, b, where there are 4 ports"):
        with_replicas(2, 3)


HOSTILE = st.one_of(
    st.text(min_size=1, max_size=40),
    st.from_regex(names.LABEL, fullmatch=True).map(lambda name: name + "\n"),
    st.from_regex(names.LABEL, fullmatch=True).flatmap(
        lambda name: st.sampled_from("\n\r\t\0 \"'`$;|&<>(){}[]#%\\\u2028\x85").map(lambda bad: f"{name}{bad}{name}")
    ),
)
#: What must never stand in a configuration file or a command line that is made from a name.
DANGEROUS = re.compile(r"[\s\x00-\x1f\x7f\"'`$;|&<>(){}\[\]#%\\\u2028\u2029]")


@settings(max_examples=200, derandomize=True)
@given(HOSTILE)
def test_hostile_names_never_pass(name: str) -> None:
    for make in (
        lambda: NodeSpec(name=name),
        lambda: NodeSpec(name="n", address=name),
        lambda: NodeSpec(name="n", ports=name),
        lambda: ModelSpec(name=name, pools=(PoolSpec(engine=SIMULATED),)),
        lambda: AdapterSpec(name=name),
        lambda: AdapterSpec(name="a", path=name),
        lambda: AdapterSpec(name="a", path=f"/{name}"),
        lambda: PoolSpec(name=name, engine=SIMULATED),
        lambda: ListenSpec(address=f"{name}:80"),
        lambda: ListenSpec(address="a:80", certificate=f"/{name}"),
        lambda: ExternalEngineSpec(endpoints=(f"http://{name}:80",)),
        lambda: VllmEngineSpec(model=name),
        lambda: VllmEngineSpec(model="m", python=f"/{name}"),
        lambda: VllmEngineSpec(model="m", env={name: "x"}),
        lambda: SimulatedEngineSpec(kv_events_endpoint=f"tcp://{name}:80"),
        lambda: ApiKeySpec(name=name, tenant="t", sha256="0" * 64),
        lambda: ApiKeySpec(name="k", tenant=name, sha256="0" * 64),
        lambda: ApiKeySpec(name="k", tenant="t", sha256=name),
        lambda: Cluster(cluster=name, models=(ModelSpec(name="m", pools=(PoolSpec(engine=SIMULATED),)),)),
    ):
        try:
            make()
        except ValidationError:
            continue
        assert DANGEROUS.search(name) is None


@settings(max_examples=200, derandomize=True)
@given(HOSTILE)
def test_hostile_arguments_hold_no_line_of_their_own(text: str) -> None:
    try:
        engine = VllmEngineSpec(model="m", args=(text,), env={"A": text})
    except ValidationError:
        return
    for value in (*engine.args, *engine.env.values()):
        assert len(value.splitlines()) <= 1
        assert "\0" not in value
        value.encode()
