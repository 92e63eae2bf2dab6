"""The KV cache as blocks: shared by prefix, bounded, evicted least recently used first.

A block is either *private* to one sequence (being filled), or *named* by the hash of all tokens up to its end; a named
block may be held by several sequences, and stays as cache when none holds it, until its room is needed.
Invariant: private + len(held) + len(cached) <= total, and no name is both held and cached.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True, slots=True)
class BlockStored:
    """A block got its name. ``parent`` is the name of the block before it, None for the first."""

    name: int
    parent: int | None
    tokens: tuple[int, ...]
    adapter: str
    salt: str = ""


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """A named block was evicted."""

    name: int


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """The whole cache was dropped."""


BlockEvent = BlockStored | BlockRemoved | AllBlocksCleared


def root(adapter: str, salt: str) -> int:
    """Return the seed of a chain of names: prompts share blocks only under one adapter and one salt."""
    return xxhash.xxh3_64_intdigest(f"{adapter}\0{salt}".encode()) if adapter or salt else 0


def name_after(parent: int, tokens: array[int]) -> int:
    """Return the name of the block of ``tokens`` that follows the block (or root) named ``parent``."""
    return xxhash.xxh3_64_intdigest(tokens.tobytes(), seed=parent)


class BlockPool:
    """Room for ``total`` blocks."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._private = 0
        self._held: dict[int, int] = {}  # name -> sequences that hold it
        self._cached: dict[int, None] = {}  # names that none holds, least recently used first
        self.removed: list[BlockRemoved] = []  # evictions since the owner last took them

    @property
    def in_use(self) -> int:
        """Blocks that sequences hold; cache that may be evicted does not count."""
        return self._private + len(self._held)

    @property
    def cached(self) -> int:
        """Named blocks that no sequence holds."""
        return len(self._cached)

    def matching(self, names: Sequence[int]) -> int:
        """Return how many blocks from the first on are here."""
        for i, name in enumerate(names):
            if name not in self._held and name not in self._cached:
                return i
        return len(names)

    def room_for(self, names: Sequence[int], private: int) -> bool:
        """Return whether ``names`` (all here) and ``private`` new blocks can be held at once."""
        revived = sum(name in self._cached for name in names)
        return self.in_use + revived + private <= self.total

    def hold(self, names: Sequence[int]) -> None:
        """Hold named blocks once more."""
        for name in names:
            self._cached.pop(name, None)
            self._held[name] = self._held.get(name, 0) + 1

    def take(self, count: int) -> None:
        """Make ``count`` private blocks, evicting cache for them. The caller has asked ``room_for``."""
        self._private += count
        excess = self.in_use + len(self._cached) - self.total
        for _ in range(excess):
            name = next(iter(self._cached))
            del self._cached[name]
            self.removed.append(BlockRemoved(name))

    def name(self, name: int) -> bool:
        """Turn a private block into a named, held one; False when a twin named it first, whose block is then shared."""
        self._private -= 1
        new = name not in self._held and name not in self._cached
        self.hold((name,))
        return new

    def release(self, names: Sequence[int], private: int) -> None:
        """Let go of what one sequence holds. Its last blocks become the first to be evicted."""
        self._private -= private
        for name in reversed(names):
            if self._held[name] > 1:
                self._held[name] -= 1
            else:
                del self._held[name]
                self._cached[name] = None

    def clear(self) -> bool:
        """Drop the cache; False, and nothing done, while any sequence holds a block."""
        if self.in_use:
            return False
        self._cached.clear()
        return True
