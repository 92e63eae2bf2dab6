"""The controller's memory of what it has decided: always what the store holds, never ahead of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from controlplane.controller import convert
from controlplane.controller.events import EventLog
from controlplane.planning.world import Desired, Record
from controlplane.spec import from_json
from controlplane.spec.model import Cluster
from controlplane.store.base import Batch, Contents, Store, StoredKey


class Ledger:
    """Spec, records and keys. Every change is stored first and seen afterwards; a failed one is not seen at all.

    Whoever reads in order to change holds ``lock`` from the read to the change.
    """

    def __init__(self, store: Store, events: EventLog) -> None:
        self.lock = asyncio.Lock()
        self.events = events
        self.cluster: Cluster | None = None
        self.desired: Desired | None = None
        self.revision = 0
        self.generation = 0
        self.records: Mapping[str, Record] = {}
        self.drained_nodes: frozenset[str] = frozenset()
        self.keys: Mapping[str, StoredKey] = {}
        self._store = store

    @property
    def store(self) -> Store:
        """The store beneath."""
        return self._store

    async def open(self) -> Contents:
        """Read everything from the store. Raises as Store.open does, and InvalidSpec for the stored spec."""
        contents = await self._store.open()
        if contents.revision is not None:
            self._see(from_json(contents.revision.spec_json), contents.revision.number)
        self.generation = contents.generation
        self.records = {record.replica: record for record in contents.records}
        self.drained_nodes = contents.drained_nodes
        self.keys = {key.name: key for key in contents.keys}
        self.events.restore(contents.events)
        return contents

    async def set_spec(self, cluster: Cluster, spec_json: str, expected: int, now_unix_ms: int) -> int:
        """Store a spec and make it the desired state; return its revision. Needs ``lock``."""
        revision = await self._store.add_revision(spec_json, expected, now_unix_ms)
        self._see(cluster, revision)
        return revision

    async def set_records(
        self,
        records: Mapping[str, Record],
        generation: int | None = None,
        drained_nodes: frozenset[str] | None = None,
    ) -> None:
        """Store what differs from the present records, with the events that wait. Needs ``lock``."""
        events = self.events.unstored()
        batch = Batch(
            put=[record for name, record in records.items() if self.records.get(name) != record],
            remove=[name for name in self.records if name not in records],
            generation=generation,
            drained_nodes=drained_nodes,
            events=events,
        )
        await self._store.write(batch)
        self.records = dict(records)
        self.events.stored(events)
        if generation is not None:
            self.generation = generation
        if drained_nodes is not None:
            self.drained_nodes = drained_nodes

    async def store_events(self) -> None:
        """Store the events that wait, if any."""
        events = self.events.unstored()
        if events:
            await self._store.write(Batch(events=events))
            self.events.stored(events)

    async def add_key(self, key: StoredKey) -> None:
        """Store a key made by command. Needs ``lock``."""
        await self._store.add_key(key)
        self.keys = {**self.keys, key.name: key}

    async def remove_key(self, name: str) -> None:
        """Remove a key made by command. Needs ``lock``."""
        await self._store.remove_key(name)
        self.keys = {other: key for other, key in self.keys.items() if other != name}

    def _see(self, cluster: Cluster, revision: int) -> None:
        self.cluster, self.desired, self.revision = cluster, convert.desired(cluster), revision
