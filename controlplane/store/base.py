"""What the controller keeps over its own restarts, and the one contract for keeping it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from controlplane.errors import ControlplaneError
from controlplane.planning.world import Record

#: Events that are kept: about a day of an uneventful cluster, under a megabyte.
MAX_EVENTS = 2_000
#: Spec revisions that are kept, so that an operator can see what came before.
MAX_REVISIONS = 50
#: API keys made by command: the gateway renders all of them into one map.
MAX_KEYS = 8_192


class StoreFailed(ControlplaneError):
    """The store cannot be read or written, for another reason than a full disk."""

    code: ClassVar[str] = "store_failed"
    grpc_status: ClassVar[str] = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Revision:
    """One applied spec; ``spec_json`` is its canonical JSON."""

    number: int
    spec_json: str


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An API key made by command. ``sha256`` is lower-case hex; the key itself is never stored."""

    name: str
    tenant: str
    sha256: str
    created_unix_ms: int
    priority: str = ""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Something that happened. ``unix_ms`` is milliseconds since 1970, UTC."""

    number: int
    unix_ms: int
    subject: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Contents:
    """All that is stored. ``generation`` is the highest that was ever given; ``revision`` None: no spec yet."""

    revision: Revision | None
    generation: int
    records: tuple[Record, ...]
    drained_nodes: frozenset[str]
    keys: tuple[StoredKey, ...]
    events: tuple[StoredEvent, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that are written together or not at all.

    ``generation`` is the highest given once this batch is written; None leaves it. ``drained_nodes`` None leaves them.
    """

    put: Sequence[Record] = ()
    remove: Sequence[str] = ()
    generation: int | None = None
    drained_nodes: frozenset[str] | None = None
    events: Sequence[StoredEvent] = ()


class Store(Protocol):
    """Durable state of one controller.

    A method that returns has written; one that raises has written nothing. StoreFull: the disk is full, and the same
    call may succeed later. StoreFailed: anything else. Numbers (revisions, generations, blocks) are never given twice,
    not even when the process is killed between any two instructions.
    """

    async def open(self) -> Contents:
        """Open or make the store and return all that is in it. Raises Conflict when another process holds it."""
        ...

    async def close(self) -> None:
        """Close it; closing twice is allowed. Nothing else may be called afterwards."""
        ...

    async def add_revision(self, spec_json: str, expected: int, now_unix_ms: int) -> int:
        """Store a spec and return its revision. Raises Conflict when ``expected`` is not 0 and not the newest."""
        ...

    async def write(self, batch: Batch) -> None:
        """Write a batch. Raises Conflict when it would take a generation back."""
        ...

    async def reserve(self, sequence: str, count: int) -> int:
        """Take ``count`` numbers of a named sequence out of circulation and return the first of them (from 1)."""
        ...

    async def add_key(self, key: StoredKey) -> None:
        """Store a key. Raises Conflict when its name is taken, InvalidRequest when there are MAX_KEYS."""
        ...

    async def remove_key(self, name: str) -> None:
        """Remove a key. Raises NotFound when there is none of that name."""
        ...

    async def check(self) -> None:
        """Prove that a transaction can be written now."""
        ...
