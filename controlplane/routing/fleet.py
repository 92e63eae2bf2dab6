"""What the router knows of the world: one immutable snapshot, free of protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.routing.admission.settings import Settings

READY = "ready"
DRAINING = "draining"
MIXED = "mixed"
DECODE = "decode"
PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """One incarnation of a replica.

    ``name`` outlives restarts, ``server`` (``<name>.g<generation>``) does not. ``state`` and ``role`` are the words
    of the protobuf enums in lower case. Sizes of 0 are not known.
    """

    server: str
    name: str
    model: str
    pool: str
    host: str
    port: int
    state: str
    role: str
    kv_capacity_tokens: int = 0
    kv_block_tokens: int = 0
    max_running: int = 0
    pin: str = ""
    kv_events_endpoint: str = ""
    kv_replay_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter that a model's replicas serve under a name of its own."""

    name: str


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """Replicas of one model with one role."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client names, and how its requests are routed.

    Empty ``session_keys`` accept every session key. ``isolated`` tenants never share cached prompts. ``precise``:
    prompts are matched, as tokens, with the engines' KV events; ``tokenizer`` is the tokenizer's folder, empty for the
    simulated engine's; a prompt that is not matched within ``deadline_s`` is routed by its text. ``admission`` is how
    requests wait while the model is saturated; None: none does.
    """

    name: str
    adapters: tuple[AdapterInfo, ...] = ()
    pools: tuple[PoolInfo, ...] = ()
    policy: str = "cost"
    parameters: Mapping[str, float] = field(default_factory=dict)
    session_keys: tuple[str, ...] = ()
    isolated: bool = False
    precise: bool = False
    tokenizer: str = ""
    deadline_s: float = 0.04
    admission: Settings | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """Numbered snapshot of the cluster."""

    number: int
    cluster: str
    models: tuple[ModelInfo, ...] = ()
    replicas: tuple[ReplicaInfo, ...] = ()
