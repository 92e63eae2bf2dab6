"""The tables of the SQLite store, as a list of migrations that are each applied once."""

from __future__ import annotations

#: Statements of migration 1, 2, ...; a released one is never edited, a change is a new entry.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE revisions (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            spec_json TEXT NOT NULL,
            created_unix_ms INTEGER NOT NULL
        ) STRICT""",
        "CREATE TABLE sequences (name TEXT PRIMARY KEY, last INTEGER NOT NULL CHECK (last >= 0)) STRICT",
        """CREATE TABLE replicas (
            replica TEXT PRIMARY KEY,
            pool TEXT NOT NULL,
            model TEXT NOT NULL,
            role TEXT NOT NULL,
            "index" INTEGER NOT NULL,
            generation INTEGER NOT NULL UNIQUE,
            node TEXT NOT NULL,
            host TEXT NOT NULL,
            port INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
            shape TEXT NOT NULL,
            external INTEGER NOT NULL,
            launch BLOB NOT NULL,
            restarts INTEGER NOT NULL,
            drained_by_operator INTEGER NOT NULL,
            restart_requested INTEGER NOT NULL,
            drain TEXT NOT NULL,
            drain_timeout_s REAL NOT NULL,
            stopping INTEGER NOT NULL
        ) STRICT""",
        # One server may serve two external pools; a port that we start an engine on is leased once.
        "CREATE UNIQUE INDEX ports ON replicas (host, port) WHERE external = 0",
        "CREATE TABLE drained_nodes (name TEXT PRIMARY KEY) STRICT",
        """CREATE TABLE api_keys (
            name TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            sha256 TEXT NOT NULL UNIQUE,
            created_unix_ms INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE events (
            number INTEGER PRIMARY KEY,
            unix_ms INTEGER NOT NULL,
            subject TEXT NOT NULL,
            reason TEXT NOT NULL,
            message TEXT NOT NULL
        ) STRICT""",
    ),
    ("ALTER TABLE replicas ADD COLUMN ports INTEGER NOT NULL DEFAULT 1 CHECK (ports > 0)",),
    ("ALTER TABLE api_keys ADD COLUMN priority TEXT NOT NULL DEFAULT ''",),
)
