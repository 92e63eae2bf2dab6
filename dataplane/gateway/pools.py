"""PURE: the pools, servers and maps of an order, every name checked."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Set
from dataclasses import dataclass

from dataplane.gateway.limits import check_interval_ms, number
from dataplane.gateway.site import InvalidGateway
from dataplane.names import HOST, LABEL, MODEL, SERVER, SHA256, checked, host_port, pin_key
from dataplane.pb import gateway_pb2, topology_pb2

#: States in which a replica is a server: it takes requests, or still finishes some.
SERVING = (topology_pb2.REPLICA_STATE_READY, topology_pb2.REPLICA_STATE_DRAINING)
#: Roles that may get a request without a decision, the better first. Never prefill.
FALLBACK_ROLES = (topology_pb2.ROLE_MIXED, topology_pb2.ROLE_DECODE)
#: 1 while it takes requests; 0 while it drains.
ACTIVE, DRAINING = 1, 0


@dataclass(frozen=True, slots=True)
class Server:
    """One ``server`` line; ``address`` is ``host:port``, ``max_connections`` 0 for no limit."""

    name: str
    address: str
    weight: int
    max_connections: int
    disabled: bool
    resolved: bool  # the host is an IP address, so that it can be added at run time


@dataclass(frozen=True, slots=True)
class Backend:
    """One pool. ``server_options`` are the same in the file and at run time."""

    name: str
    external: bool
    server_options: str
    servers: tuple[Server, ...]


def address(host: str, port: int) -> tuple[str, bool]:
    """Return HAProxy's form of an address and whether the host is an IP address. Raises InvalidName, InvalidGateway."""
    checked(HOST, host, "host")
    number(port, 1, 65_535, "port")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if ":" in host or host.replace(".", "").isdigit():
            raise InvalidGateway(f"host {host!r} is not an IP address") from None
        return host_port(host, port), False
    return host_port(host, port), True


def backends(topology: topology_pb2.Topology, lost: Set[str]) -> tuple[Backend, ...]:
    """Return each pool with its servers, in the topology's order; the servers in ``lost`` are disabled."""
    members: dict[str, list[topology_pb2.Replica]] = {}
    for model in topology.models:
        for pool in model.pools:
            if members.setdefault(checked(LABEL, pool.name, "pool"), []):
                raise InvalidGateway(f"pool {pool.name} appears twice")
    serving = [replica for replica in topology.replicas if replica.state in SERVING]
    for replica in serving:
        if replica.pool not in members:
            raise InvalidGateway(f"replica {replica.server!r} is in no pool of the topology")
        members[replica.pool].append(replica)
    interval_ms = check_interval_ms(len(serving))
    return tuple(_backend(name, replicas, lost, interval_ms) for name, replicas in members.items())


def _backend(name: str, replicas: list[topology_pb2.Replica], lost: Set[str], interval_ms: int) -> Backend:
    external = any(replica.kind == topology_pb2.ENGINE_KIND_EXTERNAL for replica in replicas)
    # A refused connection counts as all but the last failed check, and the next check is due in 200 ms. Idle
    # connections are given up before the replica gives them up, after 5 s with uvicorn: what meets its FIN is not
    # replayed.
    options = (
        f"check inter {interval_ms}ms fastinter 200ms downinter {max(interval_ms // 2, 500)}ms fall 2 rise 1 "
        "observe layer4 error-limit 1 on-error sudden-death pool-purge-delay 2s"
    )
    servers = tuple(_server(replica, lost) for replica in replicas)
    if len({server.name for server in servers}) != len(servers):
        raise InvalidGateway(f"a server appears twice in pool {name}")
    return Backend(name, external, options, servers)


def _server(replica: topology_pb2.Replica, lost: Set[str]) -> Server:
    name = checked(SERVER, replica.server, "server")
    where, resolved = address(replica.host, replica.port)
    weight = ACTIVE if replica.state == topology_pb2.REPLICA_STATE_READY else DRAINING
    return Server(name, where, weight, replica.max_connections, name in lost, resolved)


def names_of(model: topology_pb2.Model) -> list[str]:
    """Return the model's name and those of its adapters, checked."""
    return [checked(MODEL, model.name, "model"), *(checked(MODEL, a.name, "adapter") for a in model.adapters)]


def fallback_pool(model: topology_pb2.Model) -> str | None:
    """Return the pool that takes the model's requests when there is no decision."""
    for role in FALLBACK_ROLES:
        for pool in model.pools:
            if pool.role == role:
                return checked(LABEL, pool.name, "pool")
    return None


def model_map(topology: topology_pb2.Topology) -> dict[str, str]:
    """Return model or adapter name -> pool. Raises InvalidGateway when two models claim one name."""
    found: dict[str, str] = {}
    for model in topology.models:
        pool = fallback_pool(model)
        for name in names_of(model):
            if name in found:
                raise InvalidGateway(f"the model name {name!r} appears twice")
            if pool is not None:
                found[name] = pool
    return found


def pin_map(pools: Iterable[Backend]) -> dict[str, str]:
    """Return pin -> ``<pool> <server>`` for every server."""
    return {pin_key(server.name): f"{pool.name} {server.name}" for pool in pools for server in pool.servers}


def key_map(keys: Iterable[gateway_pb2.ApiKey]) -> dict[str, str]:
    """Return SHA-256 of a key -> tenant."""
    return {checked(SHA256, key.sha256, "key hash"): checked(LABEL, key.tenant, "tenant") for key in keys}


def priority_map(keys: Iterable[gateway_pb2.ApiKey]) -> dict[str, str]:
    """Return SHA-256 of a key -> the most urgent priority that its requests may ask for, where they may."""
    return {
        checked(SHA256, key.sha256, "key hash"): checked(LABEL, key.priority, "priority")
        for key in keys
        if key.priority
    }


def map_text(entries: dict[str, str]) -> str:
    """Return a map file, sorted."""
    return "".join(f"{key} {value}\n" for key, value in sorted(entries.items()))
