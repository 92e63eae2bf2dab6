"""One engine's KV memory: blocks that running requests hold, and unreferenced ones kept for their prefix.

A block is a run of at most 512 tokens of one content, cut where prompts may branch, so that two prompts share whole
blocks and a block's number says its length (``tokens``). Engines use blocks of 16 tokens: a prefix that ends inside
one of theirs is worth at most 15 tokens less to them than here.

Whoever references a block references all before it in its prompt, and blocks are let go tail first, so the least
recently used unreferenced block never has a cached block after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

#: Bits of a block's number that hold its tokens.
LENGTH_BITS = 10
LENGTH = (1 << LENGTH_BITS) - 1
BLOCK_TOKENS = 512


def block(serial: int, tokens: int) -> int:
    """Return the number of a block: ``serial`` names its content and all content before it."""
    return serial << LENGTH_BITS | tokens


def tokens(blocks: Sequence[int]) -> int:
    """Return how many tokens blocks hold."""
    return sum([number & LENGTH for number in blocks])


class SharedBlocks:
    """How many engines of a cluster cache each block: the cluster-wide cache that no real cluster has."""

    __slots__ = ("copies",)

    def __init__(self) -> None:
        self.copies: dict[int, int] = {}

    def match(self, blocks: Sequence[int]) -> int:
        """Return how many of the first blocks are cached anywhere."""
        copies = self.copies
        for place, number in enumerate(blocks):
            if number not in copies:
                return place
        return len(blocks)


class PrefixCache:
    """KV memory of one engine, in tokens. ``pinned`` is what running requests need, ``idle`` what may be evicted."""

    __slots__ = ("_idle_blocks", "_references", "_shared", "capacity", "idle", "pinned")

    def __init__(self, capacity: int, shared: SharedBlocks | None = None) -> None:
        self.capacity = capacity
        self.pinned = 0
        self.idle = 0
        self._references: dict[int, int] = {}
        self._idle_blocks: OrderedDict[int, None] = OrderedDict()
        self._shared = shared

    def match(self, blocks: Sequence[int]) -> int:
        """Return how many of the first blocks are cached: a search, because what precedes a cached block is too."""
        known = self._references
        low, high = 0, len(blocks)
        if not high or blocks[0] not in known:
            return 0
        while low < high:
            middle = (low + high + 1) >> 1
            if blocks[middle - 1] in known:
                low = middle
            else:
                high = middle - 1
        return low

    def need(self, blocks: Sequence[int], held: int, more: int) -> int:
        """Return by how much ``pinned`` grows for the ``held`` first blocks and ``more`` tokens."""
        known = self._references
        return more + sum([number & LENGTH for number in blocks[:held] if not known[number]])

    def fits(self, need: int) -> bool:
        """Whether so many more tokens can be pinned."""
        return self.pinned + need <= self.capacity

    def pin(self, blocks: Sequence[int], held: int) -> None:
        """Reference the first ``held`` blocks, which are cached."""
        known = self._references
        idle = self._idle_blocks
        for number in blocks[:held]:
            count = known[number]
            if not count:
                size = number & LENGTH
                del idle[number]
                self.idle -= size
                self.pinned += size
            known[number] = count + 1

    def reserve(self, size: int) -> None:
        """Take room for tokens that are not computed yet, evicting as needed."""
        self.pinned += size
        over = self.pinned + self.idle - self.capacity
        if over > 0:
            self._evict(over)

    def keep(self, blocks: Sequence[int], start: int) -> None:
        """Turn reserved room into referenced blocks from ``start`` on: they are being computed."""
        known = self._references
        shared = self._shared
        for number in blocks[start:]:
            count = known.get(number)
            if count is None:
                known[number] = 1
                if shared is not None:
                    shared.copies[number] = shared.copies.get(number, 0) + 1
                continue
            size = number & LENGTH
            if not count:
                del self._idle_blocks[number]
                self.idle -= size
            else:
                self.pinned -= size  # the same content was computed meanwhile: its copy is given back
            known[number] = count + 1

    def unpin(self, blocks: Sequence[int], private: int) -> None:
        """Let blocks and ``private`` reserved tokens go, tail first."""
        known = self._references
        idle = self._idle_blocks
        freed = 0
        for number in reversed(blocks):
            count = known[number] - 1
            known[number] = count
            if not count:
                idle[number] = None
                freed += number & LENGTH
        self.idle += freed
        self.pinned -= freed + private

    def _evict(self, over: int) -> None:
        known = self._references
        idle = self._idle_blocks
        shared = self._shared
        while over > 0:
            number, _ = idle.popitem(last=False)
            size = number & LENGTH
            del known[number]
            self.idle -= size
            over -= size
            if shared is not None:
                copies = shared.copies[number] - 1
                if copies:
                    shared.copies[number] = copies
                else:
                    del shared.copies[number]
