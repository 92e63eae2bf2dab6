"""Protobuf to the routing core's own types."""

from __future__ import annotations

from controlplane.errors import InvalidRequest
from controlplane.routing import fleet
from dataplane import names
from dataplane.errors import InvalidName
from dataplane.pb import topology_pb2 as pb

#: A model's replicas times its models; more is a controller that went wrong.
MAX_REPLICAS = 65_536


#: Of a model whose routing is not spelled out.
DEFAULT_POLICY = "least_loaded"


class InvalidTopology(InvalidRequest):
    """A controller published what no gateway could use."""

    code = "invalid_topology"


def topology(message: pb.Topology) -> fleet.Topology:
    """Return the snapshot without protobuf. Raises InvalidTopology."""
    try:
        return _topology(message)
    except InvalidName as error:
        raise InvalidTopology(str(error)) from error


def _topology(message: pb.Topology) -> fleet.Topology:
    if len(message.replicas) > MAX_REPLICAS:
        raise InvalidTopology(f"the topology has more than {MAX_REPLICAS} replicas")
    models = tuple(_model(model) for model in message.models)
    pools = {pool.name: pool.role for model in models for pool in model.pools}
    if len(pools) != sum(len(model.pools) for model in models):
        raise InvalidTopology("two pools have the same name")
    replicas = tuple(_replica(replica, pools) for replica in message.replicas)
    if len({replica.server for replica in replicas}) != len(replicas):
        raise InvalidTopology("two replicas have the same server name")
    return fleet.Topology(message.number, message.cluster, models, replicas)


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
    )


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
    )


def _role(role: pb.Role.ValueType) -> str:
    # A role that a later controller knows and this router does not gets no requests of its own accord.
    return pb.Role.Name(role).removeprefix("ROLE_").lower() if role in pb.Role.values() else ""


def _state(state: pb.ReplicaState.ValueType) -> str:
    known = state in pb.ReplicaState.values()
    return pb.ReplicaState.Name(state).removeprefix("REPLICA_STATE_").lower() if known else ""
