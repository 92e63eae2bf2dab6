"""A process that writes and tells what was acknowledged, until it is killed. Run by test_kill.py.

Every transaction gives two replicas one generation apart and an event, and forgets the two before: a half-applied one
shows as anything but a pair. ``--die-at N`` kills the process before its N-th statement after opening.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

from controlplane.store.base import Batch, StoredEvent
from controlplane.store.sqlite import SqliteStore
from tests.controlplane.store.records import record

_statements = 0


def _dying(die_at: int):  # type: ignore[no-untyped-def]
    def make(*args: object, **settings: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(*args, **settings)  # type: ignore[call-overload]

        def count(_statement: str) -> None:
            global _statements  # noqa: PLW0603
            _statements += 1
            if _statements >= die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        if die_at:
            connection.set_trace_callback(count)
        return connection

    return make


def _tell(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def write(path: Path, die_at: int) -> None:
    store = SqliteStore(path, _dying(die_at))
    contents = await store.open()
    generation = contents.generation
    event = contents.events[-1].number if contents.events else 0
    while True:
        pair = [record("p-0", generation + 1, 9000), record("p-1", generation + 2, 9001)]
        generation, event = generation + 2, event + 1
        events = [StoredEvent(event, 0, "replica/p-0", "restart", str(generation))]
        await store.write(Batch(put=pair, generation=generation, events=events))
        _tell(f"generation {generation}")
        _tell(f"topology {await store.reserve('topology', 3) + 2}")
        _tell(f"revision {await store.add_revision(str(generation), 0, 0)}")


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), int(sys.argv[2])))
