from __future__ import annotations

import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.errors import Conflict, InvalidRequest, NotFound, StoreFull
from controlplane.store import base
from controlplane.store.base import Batch, StoredEvent, StoredKey, StoreFailed
from controlplane.store.sqlite import SqliteStore
from tests.controlplane.store.records import record


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    return tmp_path / "slipstream.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path)
    await opened.open()
    yield opened
    await opened.close()


async def _reopened(store: SqliteStore, path: Path) -> base.Contents:
    await store.close()
    again = SqliteStore(path)
    contents = await again.open()
    await again.close()
    return contents


async def test_everything_comes_back(store: SqliteStore, path: Path) -> None:
    assert await store.add_revision('{"a":1}', 0, 5) == 1
    assert await store.add_revision('{"a":2}', 1, 6) == 2
    records = (
        record("p-0", 7, drained_by_operator=True, drain="spec_changed", drain_timeout_s=1.5),
        record("x-0", 8, 9001, external=True, stopping=True, restart_requested=True, restarts=3),
    )
    event = StoredEvent(1, 1234, "replica/p-0", "start", "on local")
    await store.write(Batch(put=records, generation=8, drained_nodes=frozenset({"n"}), events=[event]))
    await store.add_key(StoredKey("k", "team", "ab" * 32, 99))
    contents = await _reopened(store, path)
    assert contents.revision == base.Revision(2, '{"a":2}')
    assert contents.records == records
    assert contents.generation == 8
    assert contents.drained_nodes == {"n"}
    assert contents.keys == (StoredKey("k", "team", "ab" * 32, 99),)
    assert contents.events == (event,)


async def test_only_the_owner_may_read_it(store: SqliteStore, path: Path) -> None:
    await store.reserve("topology", 1)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    assert modes == {"slipstream.db": 0o600, "slipstream.db-wal": 0o600}


async def test_a_wider_mode_is_narrowed(path: Path) -> None:
    path.touch(mode=0o644)
    store = SqliteStore(path)
    await store.open()
    await store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_revision_is_refused_when_another_came_between(store: SqliteStore) -> None:
    await store.add_revision("{}", 0, 1)
    await store.add_revision("{}", 0, 2)
    with pytest.raises(Conflict, match="revision 2, not 1"):
        await store.add_revision("{}", 1, 3)


async def test_numbers_are_never_given_twice(store: SqliteStore, path: Path) -> None:
    assert await store.reserve("topology", 100) == 1
    assert await store.reserve("topology", 100) == 101
    assert await store.reserve("orders", 5) == 1
    await store.close()
    again = SqliteStore(path)
    await again.open()
    assert await again.reserve("topology", 1) == 201
    await again.close()


async def test_a_generation_is_never_taken_back(store: SqliteStore, path: Path) -> None:
    await store.write(Batch(put=[record("p-0", 5)], generation=5))
    with pytest.raises(Conflict, match="given before"):
        await store.write(Batch(put=[record("p-1", 4, 9001)], generation=4))
    assert [r.replica for r in (await _reopened(store, path)).records] == ["p-0"]


async def test_a_port_is_leased_once_but_given_on_within_a_batch(store: SqliteStore) -> None:
    await store.write(Batch(put=[record("p-0", 1)], generation=1))
    with pytest.raises(StoreFailed, match="UNIQUE"):
        await store.write(Batch(put=[record("p-1", 2)], generation=2))
    await store.write(Batch(put=[record("p-1", 2)], remove=["p-0"], generation=2))
    outside = [record("x-0", 3, external=True), record("y-0", 4, external=True)]
    await store.write(Batch(put=outside, generation=4))


async def test_a_second_controller_is_refused(path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.store.connection.BUSY_TIMEOUT_MS", 50)
    second = SqliteStore(path)
    with pytest.raises(Conflict, match="another process"):
        await second.open()
    await second.close()


async def test_events_and_revisions_are_bounded(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.store.sqlite.MAX_EVENTS", 3)
    monkeypatch.setattr("controlplane.store.sqlite.MAX_REVISIONS", 2)
    for number in range(1, 9):
        await store.write(Batch(events=[StoredEvent(number, 0, "s", "r", "m")]))
        await store.add_revision(str(number), 0, 0)
    contents = await _reopened(store, path)
    assert [e.number for e in contents.events] == [6, 7, 8]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT number FROM revisions").fetchall() == [(7,), (8,)]
    db.close()


async def test_keys(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.add_key(StoredKey("k", "team", "ab" * 32, 1))
    with pytest.raises(Conflict, match="exists already"):
        await store.add_key(StoredKey("k", "team", "cd" * 32, 1))
    monkeypatch.setattr("controlplane.store.sqlite.MAX_KEYS", 1)
    with pytest.raises(InvalidRequest, match="revoke some"):
        await store.add_key(StoredKey("k2", "team", "cd" * 32, 1))
    await store.remove_key("k")
    with pytest.raises(NotFound):
        await store.remove_key("k")


async def test_a_full_disk_is_told_and_changes_nothing(path: Path) -> None:
    connections: list[sqlite3.Connection] = []

    def make(*args: object, **settings: object) -> sqlite3.Connection:
        connections.append(sqlite3.connect(*args, **settings))  # type: ignore[call-overload]
        return connections[0]

    store = SqliteStore(path, make)
    await store.open()
    await store.write(Batch(put=[record("p-0", 1)], generation=1))
    (pages,) = connections[0].execute("PRAGMA page_count").fetchone()
    connections[0].execute(f"PRAGMA max_page_count={pages}")  # what a full disk gives: SQLITE_FULL
    big = record("p-1", 2, 9001, launch=b"x" * 100_000)
    with pytest.raises(StoreFull):
        await store.write(Batch(put=[big], generation=2))
    with pytest.raises(StoreFull):
        await store.add_revision("x" * 100_000, 0, 1)
    connections[0].execute("PRAGMA max_page_count=1000000")
    await store.write(Batch(put=[big], generation=2))
    assert await store.add_revision("x", 0, 1) == 1
    contents = await _reopened(store, path)
    assert [r.replica for r in contents.records] == ["p-0", "p-1"]


async def test_a_newer_schema_is_not_touched(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO migrations VALUES (99)")
    db.close()
    newer = SqliteStore(path)
    with pytest.raises(StoreFailed, match="schema 99"):
        await newer.open()
    await newer.close()


async def test_a_file_that_is_no_database_is_told(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like a file of one" * 100)
    store = SqliteStore(path)
    with pytest.raises(StoreFailed):
        await store.open()
    await store.close()
