from __future__ import annotations

from controlplane.planning.world import Record


def record(name: str, generation: int, port: int = 9000, **changes: object) -> Record:
    pool, _, index = name.rpartition("-")
    values: dict[str, object] = {
        "replica": name,
        "pool": pool,
        "model": "tiny",
        "role": "mixed",
        "index": int(index),
        "generation": generation,
        "node": "local",
        "host": "127.0.0.1",
        "port": port,
        "shape": "a",
        "launch": b"\x00\xff",
    }
    return Record(**(values | changes))  # type: ignore[arg-type]
