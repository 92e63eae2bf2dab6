"""Which replica caches which blocks of tokens, exactly, from the engines' own KV events.

A block's key is a chained 64-bit hash of our own: of the key before it and the block's token ids, begun from adapter
and cache salt. Engines may therefore hash as they like and with any seed; an engine's hash is only the name by which
it speaks of a block later. The holders of a key are the bits of one integer, a bit for each replica, so that a lookup
walks a prompt's blocks once for all replicas together. Neighbouring blocks that the same replicas hold share one such
integer: most steps of a walk are one comparison of identity, whatever the number of replicas. A block that does not fit
is left out and so are those after it, until the engine lets go of others: what is held is always a prompt's beginning.

Invariant: a bit is set in ``masks[tier][key]`` exactly while its replica has an engine hash with this key in
``keys[tier]``. An engine that computed a block twice tells of it twice and removes it twice: ``copies`` counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from controlplane.routing.block_events import (
    TOKEN_BYTES,
    BlockEvent,
    Cleared,
    Counters,
    EngineHash,
    Outcome,
    Removed,
    Stored,
    Tier,
)
from controlplane.routing.block_walk import Run, key_after, named, walk

#: What a cached block saves, by tier, as a part of computing it. GPU blocks cost nothing; host and disk as Dynamo's
#: router counts them by default (host 0.75, disk 0.25).
TIER_WEIGHTS: Mapping[Tier, float] = {Tier.GPU: 1.0, Tier.HOST: 0.75, Tier.DISK: 0.25}
#: (replica, tier, block) entries in all, some 220 bytes each at worst: 64 Mi tokens in blocks of 16, 1 GB.
MAX_ENTRIES = 4_194_304
#: A replica may always have this many, however many replicas there are.
MIN_ENTRIES_PER_REPLICA = 256
#: Entries of a replica for each block of its KV cache: lower tiers are larger than the GPU's.
ENTRIES_PER_BLOCK = 4
#: Of a replica that does not tell its KV size: 1 Mi tokens in blocks of 16.
DEFAULT_ENTRIES = 65_536
#: A block of fewer or more tokens is no block of any engine.
BLOCK_TOKENS_RANGE = (1, 4_096)
#: Holders that a lookup tells of, the best first; of equals, others each time.
MAX_HOLDERS = 256

_TIERS = tuple(Tier)


class _Replica:
    """One incarnation. ``keys`` maps engine hashes to our keys, by tier."""

    __slots__ = ("bit", "block_tokens", "complete", "copies", "entries", "expected", "keys", "limit", "others")

    def __init__(self, bit: int, block_tokens: int, limit: int) -> None:
        self.bit = bit
        self.block_tokens = block_tokens
        self.limit = limit
        self.expected = 0
        self.complete = True
        self.entries = 0
        self.keys: tuple[dict[EngineHash, int], ...] = tuple({} for _ in _TIERS)
        self.copies: dict[tuple[Tier, EngineHash], int] = {}
        self.others: set[int] = set()  # groups that do not keep a prompt's beginning

    def key(self, name: EngineHash) -> int | None:
        for known in self.keys:
            key = known.get(name)
            if key is not None:
                return key
        return None


def root(adapter: str, salt: str) -> int:
    """Return the key before the first block: prompts share blocks only under one adapter and one salt."""
    return key_after(f"{adapter}\0{salt}".encode("utf-8", "surrogatepass")) if adapter or salt else 0


class BlockIndex:
    """The blocks of one model's replicas. Not thread-safe; nothing in it waits."""

    def __init__(
        self, capacity: int = MAX_ENTRIES, weights: Mapping[Tier, float] = TIER_WEIGHTS, max_holders: int = MAX_HOLDERS
    ) -> None:
        self.counters = Counters()
        self._capacity = capacity
        self._weights = tuple(weights[tier] for tier in _TIERS)
        self._max_holders = max_holders
        self._masks: tuple[dict[int, int], ...] = tuple({} for _ in _TIERS)
        self._replicas: dict[bytes, _Replica] = {}
        self._servers: list[bytes] = []  # by number of the bit; empty: free
        self._sizes: dict[int, int] = {}  # tokens of a block -> bits of the replicas with such blocks
        self._entries = 0
        self._share = capacity
        self._turn = 0

    def __len__(self) -> int:
        """Return the number of entries (replica, tier, block)."""
        return self._entries

    @property
    def servers(self) -> Iterable[bytes]:
        """The replicas that are there."""
        return self._replicas.keys()

    @property
    def block_tokens(self) -> int:
        """Tokens of the largest block that any replica has; 0: not known."""
        return max(self._sizes, default=0)

    def join(self, server: bytes, *, block_tokens: int = 0, kv_capacity_tokens: int = 0) -> None:
        """Add an incarnation of a replica, with nothing cached. Sizes of 0 are not known."""
        if server in self._replicas:
            return
        try:
            number = self._servers.index(b"")
            self._servers[number] = server
        except ValueError:
            number = len(self._servers)
            self._servers.append(server)
        limit = DEFAULT_ENTRIES
        if block_tokens and kv_capacity_tokens:
            limit = ENTRIES_PER_BLOCK * (kv_capacity_tokens // block_tokens + 1)
        replica = _Replica(1 << number, 0, limit)
        self._replicas[server] = replica
        self._divide()
        if block_tokens:
            self._settle_size(replica, block_tokens)

    def leave(self, server: bytes) -> None:
        """Forget a replica; costs its own blocks only."""
        replica = self._replicas.pop(server, None)
        if replica is None:
            return
        self._drop_all(replica)
        self._divide()
        self._servers[replica.bit.bit_length() - 1] = b""
        size = replica.block_tokens
        if size:
            left = self._sizes[size] ^ replica.bit
            if left:
                self._sizes[size] = left
            else:
                del self._sizes[size]

    def expected(self, server: bytes) -> int:
        """Return the number of the batch that is to come next; 0 for a replica that is not there."""
        replica = self._replicas.get(server)
        return 0 if replica is None else replica.expected

    def entries(self, server: bytes) -> int:
        """Return how many blocks a replica has, each tier counted by itself."""
        replica = self._replicas.get(server)
        return 0 if replica is None else replica.entries

    def complete(self, server: bytes) -> bool:
        """Return whether no event of a replica is missing: what the index does not hold, the replica does not cache."""
        replica = self._replicas.get(server)
        return replica is not None and replica.complete

    def restart(self, server: bytes, sequence: int) -> None:
        """Forget a replica's blocks and expect ``sequence`` next. Beyond 0, what came before is missing for good."""
        replica = self._replicas.get(server)
        if replica is None:
            return
        self._drop_all(replica)
        replica.expected = sequence
        replica.complete = sequence == 0
        if sequence:
            self.counters.losses += 1

    def apply(self, server: bytes, sequence: int, events: Iterable[BlockEvent]) -> Outcome:
        """Take one batch if it is the next one of its replica."""
        replica = self._replicas.get(server)
        counters = self.counters
        if replica is None:
            counters.unknown_replicas += 1
            return Outcome.UNKNOWN
        if sequence < replica.expected:
            counters.old += 1
            return Outcome.OLD
        if sequence > replica.expected:
            counters.gaps += 1
            return Outcome.GAP
        replica.expected += 1
        counters.batches += 1
        for event in events:
            if isinstance(event, Stored):
                self._store(replica, event)
            elif isinstance(event, Removed):
                self._remove(replica, event)
            elif isinstance(event, Cleared):
                self._drop_all(replica)
                replica.complete = True
                counters.cleared += 1
        return Outcome.APPLIED

    def lookup(self, tokens: array[int], adapter: str = "", salt: str = "") -> dict[bytes, int]:
        """Return how many of a prompt's first tokens each replica caches, weighted by tier; the best first.

        A replica counts as far as its run of blocks from the first on goes. At most ``max_holders`` are told.
        """
        data = tokens.tobytes()
        first = root(adapter, salt)
        runs: list[Run] = []
        for size, members in self._sizes.items():
            runs += walk(self._masks, self._weights, data, first, size, members)
        runs.sort(reverse=True)
        self._turn += 1
        return named(runs, self._servers, self._max_holders, self._turn)

    def holds(self, server: bytes, tokens: array[int], adapter: str = "", salt: str = "") -> bool:
        """Return whether one replica caches a prompt's first block, in any tier."""
        replica = self._replicas.get(server)
        if replica is None or not replica.block_tokens or len(tokens) < replica.block_tokens:
            return False
        key = key_after(tokens[: replica.block_tokens].tobytes(), root(adapter, salt))
        return any(masks.get(key, 0) & replica.bit for masks in self._masks)

    def _store(self, replica: _Replica, event: Stored) -> None:
        counters = self.counters
        if not event.full_attention:
            counters.other_groups += 1
            if event.group is not None:
                replica.others.add(event.group)
            return
        if not event.tokens:
            self._move(replica, event)
            return
        size = event.block_tokens
        if not replica.block_tokens and BLOCK_TOKENS_RANGE[0] <= size <= BLOCK_TOKENS_RANGE[1]:
            self._settle_size(replica, size)
        if size != replica.block_tokens or len(event.tokens) != len(event.hashes) * size:
            counters.impossible += 1
            return
        if event.parent is None:
            key: int | None = root(event.adapter, event.salt)
        else:
            key = replica.key(event.parent)
        if key is None:
            counters.unknown_parents += 1
            return
        data = event.tokens.tobytes()
        step = size * TOKEN_BYTES
        extras = event.extras
        before = 0
        for place, name in enumerate(event.hashes):
            piece = data[place * step : (place + 1) * step]
            key = key_after(piece + extras[place] if place < len(extras) else piece, key)
            before = self._hold(replica, event.tier, name, key, before)

    def _move(self, replica: _Replica, event: Stored) -> None:
        """Note blocks in a tier that only their hashes tell of."""
        for name in event.hashes:
            key = replica.key(name)
            if key is None:
                self.counters.unknown_blocks += 1
            else:
                self._hold(replica, event.tier, name, key, 0)

    def _hold(self, replica: _Replica, tier: Tier, name: EngineHash, key: int, before: int) -> int:
        """Note one block; return the key's mask. ``before`` is that of the block before it, to be shared."""
        keys, masks = replica.keys[tier], self._masks[tier]
        known = keys.get(name)
        if known is not None:
            if known != key:
                self.counters.impossible += 1  # one name for two contents
            else:
                replica.copies[tier, name] = replica.copies.get((tier, name), 1) + 1
            return masks.get(key, 0)
        if replica.entries >= min(replica.limit, self._share) or self._entries >= self._capacity:
            self.counters.refused += 1
            replica.complete = False
            return 0
        keys[name] = key
        replica.entries += 1
        self._entries += 1
        mask = masks.get(key, 0) | replica.bit
        if mask == before:
            mask = before
        masks[key] = mask
        return mask

    def _remove(self, replica: _Replica, event: Removed) -> None:
        if event.group is not None and event.group in replica.others:
            self.counters.other_groups += 1
            return
        tier = event.tier
        for name in event.hashes:
            copies = replica.copies.pop((tier, name), 1) if replica.copies else 1
            if copies > 2:
                replica.copies[tier, name] = copies - 1
            elif copies < 2 and not self._drop(replica, tier, name):
                self.counters.unknown_blocks += 1

    def _drop(self, replica: _Replica, tier: Tier, name: EngineHash) -> bool:
        key = replica.keys[tier].pop(name, None)
        if key is None:
            return False
        replica.entries -= 1
        self._entries -= 1
        self._clear_bit(self._masks[tier], key, replica.bit)
        return True

    def _drop_all(self, replica: _Replica) -> None:
        for keys, masks in zip(replica.keys, self._masks, strict=True):
            for key in keys.values():
                self._clear_bit(masks, key, replica.bit)
            keys.clear()
        self._entries -= replica.entries
        replica.entries = 0
        replica.copies.clear()

    @staticmethod
    def _clear_bit(masks: dict[int, int], key: int, bit: int) -> None:
        mask = masks.get(key, 0) & ~bit
        if mask:
            masks[key] = mask
        else:
            masks.pop(key, None)

    def _divide(self) -> None:
        """Give each replica its part of all entries. What is beyond it leaves when the engine lets go of it."""
        self._share = max(MIN_ENTRIES_PER_REPLICA, self._capacity // max(1, len(self._replicas)))

    def _settle_size(self, replica: _Replica, size: int) -> None:
        replica.block_tokens = size
        self._sizes[size] = self._sizes.get(size, 0) | replica.bit
