"""Protobuf to the routing core's own types."""

from __future__ import annotations

import re

from controlplane.errors import InvalidRequest
from controlplane.router.journal_files import FILE_BYTES, FILE_BYTES_RANGE, FILES, FILES_RANGE
from controlplane.router.journal_settings import JournalInfo, WatchedTopology
from controlplane.routing import fleet
from controlplane.routing.admission.settings import MAX_TIMEOUT_S, MAX_WAITING, PRIORITIES, Settings
from controlplane.routing.shadow import ShadowInfo
from dataplane import names
from dataplane.errors import InvalidName
from dataplane.pb import topology_pb2 as pb

#: A model's replicas times its models; more is a controller that went wrong.
MAX_REPLICAS = 65_536


#: Where engines publish their KV events: TCP, or an abstract unix socket of this machine.
ZMQ_ENDPOINT = re.compile(r"tcp://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]):[0-9]{1,5}|ipc://@[a-z0-9-]{1,60}")
#: As long as HAProxy's own timeout for a decision may be.
MAX_DEADLINE_MS = 60_000.0
#: Of a model whose routing is not spelled out.
DEFAULT_POLICY = "cost"


class InvalidTopology(InvalidRequest):
    """A controller published what no gateway could use."""

    code = "invalid_topology"


def topology(message: pb.Topology) -> fleet.Topology:
    """Return the snapshot without protobuf. Raises InvalidTopology."""
    try:
        return _topology(message)
    except InvalidName as error:
        raise InvalidTopology(str(error)) from error


def _topology(message: pb.Topology) -> WatchedTopology:
    if len(message.replicas) > MAX_REPLICAS:
        raise InvalidTopology(f"the topology has more than {MAX_REPLICAS} replicas")
    models = tuple(_model(model) for model in message.models)
    pools = {pool.name: pool.role for model in models for pool in model.pools}
    if len(pools) != sum(len(model.pools) for model in models):
        raise InvalidTopology("two pools have the same name")
    replicas = tuple(_replica(replica, pools) for replica in message.replicas)
    if len({replica.server for replica in replicas}) != len(replicas):
        raise InvalidTopology("two replicas have the same server name")
    shadows = {
        model.name: _shadow(model.routing.shadow) for model in message.models if model.routing.HasField("shadow")
    }
    journal = _journal(message.journal) if message.HasField("journal") else None
    return WatchedTopology(message.number, message.cluster, models, replicas, journal, shadows)


def _shadow(shadow: pb.Shadow) -> ShadowInfo:
    if not 0.0 <= shadow.share <= 1.0:
        raise InvalidTopology(f"a shadow has a share of {shadow.share:g}")
    return ShadowInfo(shadow.policy, dict(shadow.parameters), shadow.share)


def _journal(journal: pb.Journal) -> JournalInfo:
    for name, value, (low, high) in (
        ("share", journal.share, (0, 1)),
        ("file_bytes", journal.file_bytes or FILE_BYTES, FILE_BYTES_RANGE),
        ("files", journal.files or FILES, FILES_RANGE),
    ):
        if not low <= value <= high:
            raise InvalidTopology(f"a journal has {name} {value:g}; it must be {low:g} to {high:g}")
    return JournalInfo(journal.share, journal.file_bytes or FILE_BYTES, journal.files or FILES)


def _admission(admission: pb.Admission) -> Settings:
    made = Settings(
        ttft_target_s=admission.ttft_target_s,
        max_requests=admission.max_requests,
        max_tokens=admission.max_tokens,
        tenant_requests=admission.tenant_requests,
        tenant_tokens=admission.tenant_tokens,
        timeouts_s=tuple(admission.timeouts_s),
        guaranteed_share=admission.guaranteed_share,
        weights={tenant.encode(): weight for tenant, weight in admission.weights.items()},
    )
    sound = (
        made.ttft_target_s > 0.0
        and 0 < made.max_requests <= MAX_WAITING
        and made.max_tokens > 0
        and made.tenant_requests > 0
        and made.tenant_tokens > 0
        and len(made.timeouts_s) == len(PRIORITIES)
        and all(0.0 < timeout <= MAX_TIMEOUT_S for timeout in made.timeouts_s)
        and 0.0 <= made.guaranteed_share < 0.5
        and all(weight > 0.0 for weight in made.weights.values())
    )
    if not sound:
        raise InvalidTopology("a model's admission has a value that is out of range")
    return made


def _model(model: pb.Model) -> fleet.ModelInfo:
    return fleet.ModelInfo(
        name=names.checked(names.MODEL, model.name, "model"),
        adapters=tuple(
            fleet.AdapterInfo(names.checked(names.MODEL, adapter.name, "adapter")) for adapter in model.adapters
        ),
        pools=tuple(
            fleet.PoolInfo(names.checked(names.LABEL, pool.name, "pool"), _role(pool.role)) for pool in model.pools
        ),
        policy=model.routing.policy or DEFAULT_POLICY,
        parameters=dict(model.routing.parameters),
        session_keys=tuple(model.routing.session_keys),
        admission=_admission(model.routing.admission) if model.routing.HasField("admission") else None,
        isolated=model.isolate_cache,
        precise=model.routing.precise,
        tokenizer=_or_empty(names.PATH, model.routing.tokenizer, "tokenizer"),
        deadline_s=min(max(model.routing.precise_deadline_ms, 0.0), MAX_DEADLINE_MS) / 1e3,
    )


def _or_empty(pattern: re.Pattern[str], value: str, what: str) -> str:
    return names.checked(pattern, value, what) if value else ""


def _replica(replica: pb.Replica, roles: dict[str, str]) -> fleet.ReplicaInfo:
    server = names.checked(names.SERVER, replica.server, "server")
    if replica.pool not in roles:
        raise InvalidTopology(f"replica {server} is in the pool {replica.pool!r}, which no model has")
    return fleet.ReplicaInfo(
        server=server,
        name=replica.name,
        model=replica.model,
        pool=replica.pool,
        host=names.checked(names.HOST, replica.host, "host"),
        port=replica.port,
        state=_state(replica.state),
        role=roles[replica.pool],
        kv_capacity_tokens=replica.kv_capacity_tokens,
        kv_block_tokens=replica.kv_block_tokens,
        max_running=replica.max_running,
        pin=names.pin_key(server),
        kv_events_endpoint=_or_empty(ZMQ_ENDPOINT, replica.kv_events_endpoint, "KV events endpoint"),
        kv_replay_endpoint=_or_empty(ZMQ_ENDPOINT, replica.kv_replay_endpoint, "KV replay endpoint"),
    )


def _role(role: pb.Role.ValueType) -> str:
    # A role that a later controller knows and this router does not gets no requests of its own accord.
    return pb.Role.Name(role).removeprefix("ROLE_").lower() if role in pb.Role.values() else ""


def _state(state: pb.ReplicaState.ValueType) -> str:
    known = state in pb.ReplicaState.values()
    return pb.ReplicaState.Name(state).removeprefix("REPLICA_STATE_").lower() if known else ""
