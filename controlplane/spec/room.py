"""Checks of what a cluster's machines have room for: addresses, ports, GPUs, replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.spec import fields
from controlplane.spec.outline import Node, Place, Pool, Violation, listed, whole

#: Replicas of one cluster: what a decision is measured for.
MAX_CLUSTER_REPLICAS = 4_096
#: Each pool is a backend of HAProxy, and each is compared with each.
MAX_CLUSTER_POOLS = 1_024
MAX_NODES = 1_024

#: The variable that `gpus` sets.
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
#: Ports in a row that a replica of a precise model takes: HTTP, KV events, and their replay.
PRECISE_PORTS = 3

_DEFAULT_LISTEN = "127.0.0.1:8000"
_DEFAULT_PAGE = "127.0.0.1:8001"
_ANY_HOST = {"0.0.0.0", "::"}  # noqa: S104


def violations(spec: dict[str, Any], pools: list[Pool], nodes: list[Node]) -> Iterator[Violation]:
    """Yield what does not fit."""
    yield from _clashing_addresses(spec, nodes[:1])
    if len(pools) > MAX_CLUSTER_POOLS:
        yield Violation(("models",), f"have {len(pools)} pools in all: a cluster may have {MAX_CLUSTER_POOLS}")
    elif len(nodes) <= MAX_NODES:
        yield from _overlapping_ports(nodes)
        yield from _missing_ports(pools, nodes)
        yield from _too_many_replicas(pools)
        yield from _gpus(pools)


def _listeners(spec: dict[str, Any]) -> Iterator[tuple[Place, str, int]]:
    gateway, admin = spec.get("gateway", {}), spec.get("admin", {})
    found = [(place, entry.get("address") if isinstance(entry, dict) else entry)
             for place, entry in listed(gateway, "listen", ("gateway",))]  # fmt: skip
    if isinstance(gateway, dict) and "listen" not in gateway:
        found = [(("gateway", "listen"), _DEFAULT_LISTEN)]
    page = admin.get("page", _DEFAULT_PAGE) if isinstance(admin, dict) else None
    # The page comes first, so that a clash is told of the listener, which every spec has reason to write.
    for place, address in [(("admin", "page"), page), *found]:
        if isinstance(address, str):
            try:
                yield place, *fields.split_address(address)
            except ValueError:
                continue


def _clashing_addresses(spec: dict[str, Any], gateway_nodes: list[Node]) -> Iterator[Violation]:
    seen: list[tuple[str, int]] = []
    for place, host, port in _listeners(spec):
        if any(port == other and (host == h or {host, h} & _ANY_HOST) for h, other in seen):
            yield Violation(place, f"port {port} is listened on twice (gateway.listen, admin.page)")
        seen.append((host, port))
        for node in gateway_nodes:
            if node.span and node.span[0] <= port <= node.span[1]:
                first, last = node.span
                yield Violation(place, f"port {port} is one of the first node's ports for engines ({first}-{last})")


def _overlapping_ports(nodes: list[Node]) -> Iterator[Violation]:
    taken: dict[str, list[tuple[int, int]]] = {}
    for node in nodes:
        if node.span is None:
            continue
        first, last = node.span
        spans = taken.setdefault(node.address, [])
        if any(first <= other_last and other_first <= last for other_first, other_last in spans):
            yield Violation((*node.place, "ports"), "overlap the ports of another node at the same address")
        spans.append(node.span)


def _missing_ports(pools: list[Pool], nodes: list[Node]) -> Iterator[Violation]:
    room = {node.name: node.span[1] - node.span[0] + 1 for node in nodes if node.span}
    started = [pool for pool in pools if pool.kind not in {"", "external"}]
    for names in dict.fromkeys(pool.nodes for pool in started):
        if not names <= room.keys():
            continue
        inside = [pool for pool in started if pool.nodes <= names]
        replicas = sum(pool.replicas for pool in inside)
        wanted = sum(pool.replicas * (PRECISE_PORTS if pool.precise else 1) for pool in inside)
        there = sum(room[name] for name in names)
        if wanted > there:
            where = ", ".join(sorted(names)[:5])
            need = "" if wanted == replicas else f", and need {wanted}"
            message = f"{replicas} replicas in all are to run on {where}, where there are {there} ports{need}"
            yield Violation((*inside[-1].place, "replicas"), message)


def _too_many_replicas(pools: list[Pool]) -> Iterator[Violation]:
    total = sum(pool.replicas for pool in pools)
    if total > MAX_CLUSTER_REPLICAS:
        yield Violation(("models",), f"have {total} replicas in all: a cluster may have {MAX_CLUSTER_REPLICAS}")


def _gpus(pools: list[Pool]) -> Iterator[Violation]:
    taken: dict[str, set[int]] = {}
    for pool in pools:
        gpus = [gpu for _, gpu in listed(pool.engine, "gpus") if type(gpu) is int]
        if not gpus or pool.kind != "vllm":
            continue
        place = (*pool.place, "engine", "gpus")
        each = whole(pool.engine, "tensor_parallel_size", 1) * whole(pool.engine, "pipeline_parallel_size", 1)
        if len(pool.nodes) != 1:
            yield Violation(place, "need a pool that names its one node: numbers mean other GPUs on each machine")
            continue
        if len(set(gpus)) != len(gpus):
            yield Violation(place, "name a GPU twice")
        elif taken.setdefault(next(iter(pool.nodes)), set()) & set(gpus):
            yield Violation(place, "name a GPU that another pool has on this node")
        elif len(gpus) < pool.replicas * each:
            yield Violation(place, f"are {len(gpus)}: {pool.replicas} replicas of {each} need {pool.replicas * each}")
        env = pool.engine.get("env")
        if isinstance(env, dict) and GPU_VARIABLE in env:
            yield Violation((*pool.place, "engine", "env", GPU_VARIABLE), "is set from 'gpus'")
        taken.setdefault(next(iter(pool.nodes)), set()).update(gpus)
