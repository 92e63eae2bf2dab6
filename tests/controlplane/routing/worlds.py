"""Small clusters and requests for the tests of the routing core."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import xxhash

from controlplane.routing.core import RoutingCore
from controlplane.routing.events import Completion
from controlplane.routing.features import Request
from controlplane.routing.fleet import AdapterInfo, ModelInfo, PoolInfo, ReplicaInfo, Topology

BLOCK = 4096


def replica(name: str, generation: int = 1, *, model: str = "m", pool: str = "p", **changes: object) -> ReplicaInfo:
    fields: dict[str, object] = {
        "server": f"{name}.g{generation}",
        "name": name,
        "model": model,
        "pool": pool,
        "host": "127.0.0.1",
        "port": 8000,
        "state": "ready",
        "role": "mixed",
        "pin": f"{xxhash.xxh32_intdigest(f'{name}.g{generation}'.encode()):08x}",
    }
    return ReplicaInfo(**{**fields, **changes})  # type: ignore[arg-type]


def topology(
    count: int,
    policy: str,
    *,
    number: int = 1,
    parameters: Mapping[str, float] | None = None,
    adapters: Sequence[str] = (),
    replicas: Sequence[ReplicaInfo] | None = None,
    session_keys: Sequence[str] = (),
) -> Topology:
    model = ModelInfo(
        name="m",
        adapters=tuple(AdapterInfo(name) for name in adapters),
        pools=(PoolInfo("p", "mixed"),),
        policy=policy,
        parameters=parameters or {},
        session_keys=tuple(session_keys),
    )
    return Topology(number, "test", (model,), tuple(replicas or [replica(f"p-{index}") for index in range(count)]))


def core(count: int, policy: str, **settings: object) -> RoutingCore:
    made = RoutingCore(receipt_capacity=1000)
    made.install(topology(count, policy, **settings), 0.0)  # type: ignore[arg-type]
    return made


def chain(blocks: Sequence[object]) -> bytes:
    """Return chained hashes as a client with these blocks would cause; a block is named by anything."""
    seed = 0
    values = []
    for block in blocks:
        value = xxhash.xxh64_intdigest(str(block).encode(), seed)
        seed = value & 0x7FFFFFFF
        values.append(value)
    return struct.pack(f"<{len(values)}Q", *values)


def request(model: str = "m", *, session: str = "", blocks: Sequence[object] = (), **changes: object) -> Request:
    made = Request(
        plain=True,
        kind=1,
        flags=1,
        model=model.encode(),
        session=session.encode(),
        pin=b"",
        hashes=chain(blocks),
        body_bytes=len(blocks) * BLOCK,
        prompt_bytes=len(blocks) * BLOCK,
        max_tokens=0,
        tenant=b"",
        error="",
        missing="",
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def completion(request_id: bytes, server: bytes, *, status: int = 200, first_byte_ms: int = 20) -> Completion:
    return Completion(request_id, server, status, first_byte_ms, 100, 1000, b"--", 0)
