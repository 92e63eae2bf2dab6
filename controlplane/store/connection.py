"""One SQLite connection with the settings that the store's promises rest on."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.errors import Conflict, ControlplaneError, StoreFull
from controlplane.store.base import StoreFailed
from controlplane.store.schema import MIGRATIONS

#: Milliseconds to wait for another process's lock: a controller that is just ending lets go within that.
BUSY_TIMEOUT_MS = 2_000
#: Pages of write-ahead log before SQLite folds it into the database: 1 MiB.
CHECKPOINT_PAGES = 256

Connect = Callable[..., sqlite3.Connection]


def connect(path: Path, make: Connect = sqlite3.connect) -> sqlite3.Connection:
    """Open the database at ``path``, mode 0600, and bring its schema up to date.

    synchronous=FULL: in WAL mode NORMAL may lose the last transactions when the machine loses power, and a generation
    that was acknowledged and lost would be given twice. FULL costs one fsync a transaction, of which there are few: a
    change of the cluster, never a request. locking_mode=EXCLUSIVE: a second controller on the same directory fails at
    its start instead of giving the same numbers; the kernel drops the lock when the process dies.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)  # SQLite gives its -wal file the same mode
    except OSError as error:
        raise StoreFailed(f"store {path}: {error.strerror}") from error
    with translated():
        db = make(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA trusted_schema=OFF")
            db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            _migrate(db)
        except BaseException:
            db.close()
            raise
    return db


def _migrate(db: sqlite3.Connection) -> None:
    with transaction(db):
        db.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY) STRICT")
        (done,) = db.execute("SELECT coalesce(max(number), 0) FROM migrations").fetchone()
        if done > len(MIGRATIONS):
            raise StoreFailed(f"the store has schema {done}; this version knows {len(MIGRATIONS)}")
        for number, statements in enumerate(MIGRATIONS[done:], start=done + 1):
            for statement in statements:
                db.execute(statement)
            db.execute("INSERT INTO migrations (number) VALUES (?)", (number,))


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write everything in the block, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLite's errors into the control plane's."""
    try:
        yield
    except ControlplaneError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull("the disk that holds the store is full; nothing was written") from error
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise Conflict("another process holds the store") from error
        raise StoreFailed(f"the store failed: {error}") from error
