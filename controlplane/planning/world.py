"""What planning reads: the desired state, the controller's records, and what was observed of them.

All times are seconds of one monotonic clock that the caller chose; wall-clock time decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Where a replica stands; the words of the protobuf enum ReplicaState."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


class DrainReason(StrEnum):
    """Why the controller takes a replica out of rotation by itself."""

    SCALE_DOWN = "scale_down"
    POOL_REMOVED = "pool_removed"
    ENDPOINT_REMOVED = "endpoint_removed"
    SPEC_CHANGED = "spec_changed"
    PORTS_NEEDED = "ports_needed"
    RESTART_REQUESTED = "restart_requested"
    NODE_NOT_ALLOWED = "node_not_allowed"


@dataclass(frozen=True, slots=True)
class NodeDesired:
    """A node of the spec and the ports that its engines may get, both ends included."""

    name: str
    address: str
    first_port: int
    last_port: int


@dataclass(frozen=True, slots=True)
class PoolDesired:
    """A pool of the spec.

    ``shape`` is a digest of everything an engine is started with but its replica, generation, host and port: another
    shape means that running replicas are out of date. ``nodes`` empty: any node. ``endpoints`` is for external pools
    only: one (host, port) for each replica, and ``replicas`` is their count. ``ports`` is how many consecutive ports
    each replica needs.
    """

    name: str
    model: str
    role: str
    replicas: int
    shape: str
    nodes: tuple[str, ...] = ()
    external: bool = False
    endpoints: tuple[tuple[str, int], ...] = ()
    ports: int = 1


@dataclass(frozen=True, slots=True)
class Desired:
    """All that the spec wants of replicas. ``prober`` is the node that probes external endpoints."""

    pools: tuple[PoolDesired, ...]
    nodes: tuple[NodeDesired, ...]
    prober: str
    drain_timeout_s: float

    def pool(self, name: str) -> PoolDesired | None:
        """Return the pool of that name, None when the spec has none."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def node(self, name: str) -> NodeDesired | None:
        """Return the node of that name, None when the spec has none."""
        return next((node for node in self.nodes if node.name == name), None)


@dataclass(frozen=True, slots=True)
class Record:
    """What the controller has decided of one replica and keeps over its own restarts.

    A record leases ``ports`` ports from ``port`` on, on ``host``, from Start to Forget. ``launch`` is the serialised
    EngineLaunch that this generation was started with; planning does not look into it. ``drain`` empty: not being
    drained by the controller. ``drain_timeout_s`` bounds the drain that runs now, the operator's included.
    """

    replica: str
    pool: str
    model: str
    role: str
    index: int
    generation: int
    node: str
    host: str
    port: int
    shape: str
    external: bool = False
    launch: bytes = b""
    restarts: int = 0
    drained_by_operator: bool = False
    restart_requested: bool = False
    drain: str = ""
    drain_timeout_s: float = 0.0
    stopping: bool = False
    ports: int = 1

    @property
    def draining(self) -> bool:
        """Tell whether the replica is kept out of rotation on purpose."""
        return bool(self.drain) or self.drained_by_operator


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of the record's own generation, from a node that is heard.

    ``gone``: the node has taken orders without this replica and no longer lists it. ``streams`` is HAProxy's count as
    of ``streams_at_s``, None when no gateway that has applied the replica's present state has told.
    """

    phase: Phase
    exited: bool = False
    gone: bool = False
    streams: int | None = None
    streams_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """What was observed. A replica without an entry is on a node that is lost or was not heard yet."""

    replicas: Mapping[str, Observation] = field(default_factory=dict)
    lost_nodes: frozenset[str] = frozenset()
    drained_nodes: frozenset[str] = frozenset()
