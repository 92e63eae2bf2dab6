"""The embedded store: SQLite behind one thread, every change one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields
from pathlib import Path
from typing import TypeVar

from controlplane.errors import Conflict, InvalidRequest, NotFound
from controlplane.planning.world import Record
from controlplane.store.base import (
    MAX_EVENTS,
    MAX_KEYS,
    MAX_REVISIONS,
    Batch,
    Contents,
    Revision,
    StoredEvent,
    StoredKey,
)
from controlplane.store.connection import connect, transaction, translated

T = TypeVar("T")

_RECORD_FIELDS = tuple(field.name for field in fields(Record))
_RECORD_FLAGS = ("external", "drained_by_operator", "restart_requested", "stopping")
_COLUMNS = ", ".join(f'"{name}"' for name in _RECORD_FIELDS)
_PUT_RECORD = f"INSERT INTO replicas ({_COLUMNS}) VALUES ({', '.join('?' * len(_RECORD_FIELDS))})"  # noqa: S608


class SqliteStore:
    """Store on one file. All statements run in one thread, in the order of the calls.

    ``make`` opens the connection; a test passes one that fails or dies at a chosen statement.
    """

    def __init__(self, path: Path, make: Callable[..., sqlite3.Connection] = sqlite3.connect) -> None:
        self._path = path
        self._make = make
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._db: sqlite3.Connection | None = None

    async def open(self) -> Contents:
        """See Store.open."""
        return await self._run(self._open)

    async def close(self) -> None:
        """See Store.close."""
        if self._db is not None:
            closing, self._db = self._db, None
            await self._run(closing.close)
        self._thread.shutdown()

    async def add_revision(self, spec_json: str, expected: int, now_unix_ms: int) -> int:
        """See Store.add_revision."""
        return await self._change(lambda db: _add_revision(db, spec_json, expected, now_unix_ms))

    async def write(self, batch: Batch) -> None:
        """See Store.write."""
        await self._change(lambda db: _write(db, batch))

    async def reserve(self, sequence: str, count: int) -> int:
        """See Store.reserve."""
        return await self._change(lambda db: _reserve(db, sequence, count))

    async def add_key(self, key: StoredKey) -> None:
        """See Store.add_key."""
        await self._change(lambda db: _add_key(db, key))

    async def remove_key(self, name: str) -> None:
        """See Store.remove_key."""
        await self._change(lambda db: _remove_key(db, name))

    async def check(self) -> None:
        """See Store.check."""
        await self._change(lambda db: _set_sequence(db, "checks", _sequence(db, "checks") + 1))

    def _open(self) -> Contents:
        self._db = connect(self._path, self._make)
        return _contents(self._db)

    async def _change(self, change: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            assert self._db is not None, "the store is not open"
            with transaction(self._db):
                return change(self._db)

        return await self._run(run)

    async def _run(self, call: Callable[[], T]) -> T:
        def run() -> T:
            with translated():
                return call()

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def _contents(db: sqlite3.Connection) -> Contents:
    newest = db.execute("SELECT number, spec_json FROM revisions ORDER BY number DESC LIMIT 1").fetchone()
    records = db.execute(f"SELECT {_COLUMNS} FROM replicas ORDER BY replica").fetchall()  # noqa: S608
    return Contents(
        revision=Revision(*newest) if newest else None,
        generation=_sequence(db, "generation"),
        records=tuple(_record(row) for row in records),
        drained_nodes=frozenset(name for (name,) in db.execute("SELECT name FROM drained_nodes")),
        keys=tuple(
            StoredKey(*row)
            for row in db.execute("SELECT name, tenant, sha256, created_unix_ms, priority FROM api_keys ORDER BY name")
        ),
        events=tuple(
            StoredEvent(*row)
            for row in db.execute("SELECT number, unix_ms, subject, reason, message FROM events ORDER BY number")
        ),
    )


def _record(row: tuple[object, ...]) -> Record:
    values = dict(zip(_RECORD_FIELDS, row, strict=True))
    values.update({name: bool(values[name]) for name in _RECORD_FLAGS})
    return Record(**values)  # type: ignore[arg-type]


def _add_revision(db: sqlite3.Connection, spec_json: str, expected: int, now_unix_ms: int) -> int:
    (newest,) = db.execute("SELECT coalesce(max(number), 0) FROM revisions").fetchone()
    if expected and expected != newest:
        raise Conflict(f"the spec is at revision {newest}, not {expected}: another one was applied in between")
    cursor = db.execute("INSERT INTO revisions (spec_json, created_unix_ms) VALUES (?, ?)", (spec_json, now_unix_ms))
    number = int(cursor.lastrowid or 0)
    db.execute("DELETE FROM revisions WHERE number <= ?", (number - MAX_REVISIONS,))
    return number


def _write(db: sqlite3.Connection, batch: Batch) -> None:
    # All that is replaced goes first: a port that one record gives up may be another's in the same batch.
    gone = [*batch.remove, *(record.replica for record in batch.put)]
    db.executemany("DELETE FROM replicas WHERE replica = ?", [(name,) for name in gone])
    db.executemany(_PUT_RECORD, [astuple(record) for record in batch.put])
    if batch.generation is not None:
        last = _sequence(db, "generation")
        if batch.generation < last:
            raise Conflict(f"generation {batch.generation} was given before: the last one is {last}")
        _set_sequence(db, "generation", batch.generation)
    if batch.drained_nodes is not None:
        db.execute("DELETE FROM drained_nodes")
        db.executemany("INSERT INTO drained_nodes VALUES (?)", [(name,) for name in sorted(batch.drained_nodes)])
    if batch.events:
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", [astuple(event) for event in batch.events])
        db.execute("DELETE FROM events WHERE number <= ?", (batch.events[-1].number - MAX_EVENTS,))


def _sequence(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT last FROM sequences WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _set_sequence(db: sqlite3.Connection, name: str, last: int) -> None:
    db.execute(
        "INSERT INTO sequences VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET last = excluded.last", (name, last)
    )


def _reserve(db: sqlite3.Connection, sequence: str, count: int) -> int:
    last = _sequence(db, sequence)
    _set_sequence(db, sequence, last + count)
    return last + 1


def _add_key(db: sqlite3.Connection, key: StoredKey) -> None:
    (count,) = db.execute("SELECT count(*) FROM api_keys").fetchone()
    if count >= MAX_KEYS:
        raise InvalidRequest(f"there are {MAX_KEYS} keys already; revoke some first")
    if db.execute("SELECT 1 FROM api_keys WHERE name = ?", (key.name,)).fetchone():
        raise Conflict(f"a key with the name {key.name} exists already")
    db.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?)", astuple(key))


def _remove_key(db: sqlite3.Connection, name: str) -> None:
    if db.execute("DELETE FROM api_keys WHERE name = ?", (name,)).rowcount == 0:
        raise NotFound(f"there is no key with the name {name}")
