"""A cluster as its operator wants it. YAML and Python make the same objects.

Every object is frozen; every name, path and address in it has been matched in whole, so what is made from it (a
configuration, a command line) needs no escaping.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from controlplane.spec import checks, fields, outline, room
from controlplane.spec.admission import AdmissionSpec
from controlplane.spec.edge import AdminSpec, ApiKeySpec, ApiKeysSpec, GatewaySpec, LimitsSpec, ListenSpec, RouterSpec
from controlplane.spec.engines import EngineSpec, ExternalEngineSpec, Part, SimulatedEngineSpec, VllmEngineSpec
from controlplane.spec.fields import (
    Count,
    Flag,
    Host,
    Label,
    ModelName,
    Number,
    ParameterName,
    Path,
    PathOrNone,
    Ports,
    SessionKey,
)

__all__ = [
    "POLICIES",
    "AdapterSpec",
    "AdminSpec",
    "AdmissionSpec",
    "ApiKeySpec",
    "ApiKeysSpec",
    "Cluster",
    "EngineSpec",
    "ExternalEngineSpec",
    "GatewaySpec",
    "LimitsSpec",
    "ListenSpec",
    "ModelSpec",
    "NodeSpec",
    "Part",
    "PoolSpec",
    "RoutingSpec",
    "SimulatedEngineSpec",
    "VllmEngineSpec",
]

#: Routing policies, as RoutingSpec.policy names them.
POLICIES = (
    "cost",
    "round_robin",
    "least_loaded",
    "power_of_two",
    "session",
    "prefix",
    "cache_aware",
    "sticky_until_saturated",
    "kv_overlap",
    "prefix_tree",
    "weighted_blend",
)
SESSION_KEYS = ("x-session-id", "x-correlation-id", "user", "prompt_cache_key")

#: Type of pydantic's error when parts of a spec do not agree; its path holds no step of pydantic's own.
DISAGREEMENT = "disagreement"

#: Bounds of a spec; see controlplane/spec/engines.py.
MAX_MODELS = 1_024
MAX_ADAPTERS = 256
MAX_POOLS = 64
MAX_PARAMETERS = 32
MAX_SESSION_KEYS = 8


class NodeSpec(Part):
    """One machine. Its engines listen on ``address``, each on one of ``ports`` (``first-last``)."""

    name: Label
    """Name of the node."""
    address: Host = "127.0.0.1"
    """Address that engines listen on and the gateway connects to."""
    ports: Ports = "21000-21999"
    """`first-last`: one port for each replica, three for one of a `precise` model; below the kernel's own (32768)."""

    @property
    def first_port(self) -> int:
        """First of the engines' ports."""
        return fields.split_ports(self.ports)[0]

    @property
    def last_port(self) -> int:
        """Last of the engines' ports."""
        return fields.split_ports(self.ports)[1]


class AdapterSpec(Part):
    """A LoRA adapter, which clients name in ``model``. ``path`` is its directory on the nodes."""

    name: ModelName
    """What clients write in `model`."""
    path: Path | None = None
    """Directory on the nodes. vLLM needs it; other engines do not."""


class ShadowSpec(Part):
    """A second policy that is asked for the same decisions, and never routes. In YAML, a name alone is one."""

    policy: ParameterName
    """Any of the routing policies."""
    parameters: Annotated[dict[ParameterName, Number], Field(max_length=MAX_PARAMETERS), fields.IN_ORDER] = Field(
        default_factory=dict
    )
    """Its parameters, by the names that it documents."""
    share: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Part of the decisions that it is asked for."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"policy": value} if isinstance(value, str) else value


class RoutingSpec(Part):
    """How a model's requests are routed."""

    policy: Literal[
        "cost",
        "round_robin",
        "least_loaded",
        "power_of_two",
        "session",
        "prefix",
        "cache_aware",
        "sticky_until_saturated",
        "kv_overlap",
        "prefix_tree",
        "weighted_blend",
    ] = "cost"
    """How a replica is chosen."""
    parameters: Annotated[dict[ParameterName, Number], Field(max_length=MAX_PARAMETERS), fields.IN_ORDER] = Field(
        default_factory=dict
    )
    """The policy's parameters, by the names that it documents."""
    session_keys: Annotated[tuple[SessionKey, ...], Field(max_length=MAX_SESSION_KEYS)] = SESSION_KEYS
    """Headers and body fields that name a session; the first that a request has counts."""
    precise: Flag = False
    """Match prompts, as tokens, with what the engines tell of their caches; see docs/precise.md."""
    tokenizer: PathOrNone = ""
    """Folder of `tokenizer.json` on the gateway's node, for `precise`. Empty: the engine's `model` when a path."""
    shadow: ShadowSpec | None = None
    """A policy to compare with, live, without routing by it. None: none."""
    admission: AdmissionSpec | None = None
    """Let requests wait, bounded and fairly, while the model is saturated; see docs/admission.md. None: none waits."""


class PoolSpec(Part):
    """Replicas of one model with one role.

    ``name`` is never empty inside a ModelSpec. ``nodes`` empty: any node. With an external engine, ``replicas`` is
    the number of its endpoints.
    """

    name: Label = ""
    """Unique in the cluster. Default: <slug of the model>-<role>."""
    role: Literal["mixed", "prefill", "decode"] = "mixed"
    """What the replicas do for a request."""
    replicas: Annotated[Count, Field(ge=0, le=outline.MAX_REPLICAS)] = 1
    """How many. External engines: the number of endpoints."""
    nodes: Annotated[tuple[Label, ...], Field(max_length=room.MAX_NODES)] = ()
    """Nodes that may run them. Empty: all."""
    max_connections: Annotated[Count, Field(ge=0, le=1_000_000)] = 0
    """Requests that HAProxy lets one replica have at once; the rest wait in HAProxy. 0: no limit."""
    engine: EngineSpec
    """What each replica runs."""

    @model_validator(mode="before")
    @classmethod
    def _count_endpoints(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "replicas" in value:
            return value
        engine = value.get("engine")
        if isinstance(engine, ExternalEngineSpec):
            return value | {"replicas": len(engine.endpoints)}
        if isinstance(engine, dict) and engine.get("kind") == "external":
            endpoints = engine.get("endpoints")
            return value | {"replicas": len(endpoints)} if isinstance(endpoints, list | tuple) else value
        return value


class ModelSpec(Part):
    """What a client names in ``model``."""

    name: ModelName
    """What clients write in `model`."""
    adapters: Annotated[tuple[AdapterSpec, ...], Field(max_length=MAX_ADAPTERS)] = ()
    """LoRA adapters that every replica of the model serves."""
    routing: RoutingSpec = RoutingSpec()
    """How requests of this model and its adapters are routed."""
    isolate_cache: bool = False
    """Tenants (of the API keys) share no cached prompts, and a client's own `cache_salt` counts for nothing."""
    pools: Annotated[tuple[PoolSpec, ...], Field(min_length=1, max_length=MAX_POOLS)]
    """Its replicas, by role."""

    @field_validator("pools")
    @classmethod
    def _name_pools(cls, pools: tuple[PoolSpec, ...], info: ValidationInfo) -> tuple[PoolSpec, ...]:
        model = info.data.get("name")
        if model is None:
            return pools
        return tuple(
            pool if pool.name else pool.model_copy(update={"name": outline.default_pool_name(model, pool.role)})
            for pool in pools
        )


class Cluster(Part):
    """Everything that one spec describes."""

    cluster: Label
    """Name of the cluster."""
    gateway: GatewaySpec = GatewaySpec()
    """The gateway, which runs on the first node."""
    limits: LimitsSpec = LimitsSpec()
    """What the gateway takes from clients."""
    routing: RouterSpec = RouterSpec()
    """What holds for the decisions of all models."""
    admin: AdminSpec = AdminSpec()
    """What operators look at."""
    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1, max_length=room.MAX_NODES)] = (NodeSpec(name="local"),)
    """Machines, each with a node agent."""
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1, max_length=MAX_MODELS)]
    """What the cluster serves."""
    api_keys: ApiKeysSpec = ApiKeysSpec()
    """Keys of clients."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        found = checks.violations(self.model_dump())
        if found:
            raise ValidationError.from_exception_data(
                "Cluster",
                [
                    InitErrorDetails(
                        type=PydanticCustomError(DISAGREEMENT, "{message}", {"message": violation.message}),
                        loc=violation.place,
                        input=None,
                    )
                    for violation in found
                ],
            )
        return self

    def pool(self, name: str) -> tuple[ModelSpec, PoolSpec]:
        """Return the pool of that name and its model; raises KeyError."""
        for model in self.models:
            for pool in model.pools:
                if pool.name == name:
                    return model, pool
        raise KeyError(name)

    def node(self, name: str) -> NodeSpec:
        """Return the node of that name; raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def pool_nodes(self, pool: PoolSpec) -> tuple[NodeSpec, ...]:
        """Return the nodes that the pool's replicas may run on, in the order of the spec."""
        return tuple(node for node in self.nodes if not pool.nodes or node.name in pool.nodes)

    def scaled(self, pool_name: str, replicas: int) -> Cluster:
        """Return the cluster with another number of replicas in one pool.

        Raises KeyError for a pool that is not there, pydantic's ValidationError when the number is not allowed.
        """
        self.pool(pool_name)
        data = self.model_dump()
        for model in data["models"]:
            for pool in model["pools"]:
                if pool["name"] == pool_name:
                    pool["replicas"] = replicas
        return Cluster.model_validate(data)
