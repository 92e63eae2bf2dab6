"""Topologies and feature records for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controlplane.router import topology_file
from controlplane.routing.features import KIND_NUMBERS, WHOLE_BODY, Request
from controlplane.routing.features import record as write_record
from dataplane.pb.topology_pb2 import (
    ENGINE_KIND_SIMULATED,
    REPLICA_STATE_READY,
    ROLE_MIXED,
    Adapter,
    Model,
    Pool,
    Replica,
    Routing,
    Topology,
)
from dataplane.state_dir import StateDir


def topology(
    number: int = 1,
    servers: Sequence[tuple[str, int]] = (("tiny-mixed-0.g1", 1001), ("tiny-mixed-1.g1", 1002)),
    policy: str = "least_loaded",
    cluster: str = "test",
    published_unix_ms: int = 0,
) -> Topology:
    """Return one model, `tiny`, with one adapter and these (server name, port) pairs."""
    pool = "tiny-mixed"
    model = Model(
        name="tiny",
        adapters=[Adapter(name="sql")],
        pools=[Pool(name=pool, role=ROLE_MIXED)],
        routing=Routing(policy=policy),
    )
    replicas = [
        Replica(
            name=server.rsplit(".g", 1)[0],
            server=server,
            model="tiny",
            pool=pool,
            node="here",
            group=server.rsplit(".g", 1)[0],
            generation=int(server.rsplit(".g", 1)[1]),
            host="127.0.0.1",
            port=port,
            state=REPLICA_STATE_READY,
            kind=ENGINE_KIND_SIMULATED,
        )
        for server, port in servers
    ]
    return Topology(
        number=number,
        cluster=cluster,
        published_unix_ms=published_unix_ms or 1_700_000_000_000 + number,
        models=[model],
        replicas=replicas,
    )


def topology_path(state: StateDir) -> Path:
    """Return where the router keeps its topology."""
    return state.router / topology_file.FILE_NAME


def record(
    model: bytes = b"tiny", hashes: bytes = b"", body_bytes: int = 100, state: int = 1, flags: int = WHOLE_BODY
) -> bytes:
    """Return a feature record as HAProxy's Lua writes it."""
    request = Request(
        plain=True,
        kind=KIND_NUMBERS["completions"],
        flags=flags,
        model=model,
        session=b"",
        pin=b"",
        hashes=hashes,
        body_bytes=body_bytes,
        prompt_bytes=len(hashes) // 8 * 4096,
        max_tokens=16,
        tenant=b"",
        error="",
        missing="",
    )
    return write_record(request, state)
