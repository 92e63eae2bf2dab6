"""Which prompt blocks the requests at one replica occupy, each block counted once however many share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from struct import unpack

from controlplane.routing.load import BLOCK_BYTES
from controlplane.routing.prefix_index import HASH_BYTES

#: Requests of one replica that are remembered, about 3 KB each with 33 blocks: an engine's batch (vLLM: 256).
MAX_PROMPTS = 256


def chained(chain: bytes) -> list[int]:
    """Return a key for each block of a prompt that tells the block and all before it; the same in every process."""
    return list(accumulate(unpack(f"<{len(chain) // HASH_BYTES}Q", chain), lambda before, own: hash((before, own))))


class ActiveBlocks:
    """The prompts that are taken to be at one replica: the newest, as many as are in flight there.

    A policy is not told which request ended, only how many are left: the oldest is taken to end first. Where answers
    have about the same length that is so; else blocks of a shared beginning, which is what counts, are the same.
    """

    __slots__ = ("_prompts", "_rest", "counts", "length", "size")

    def __init__(self) -> None:
        self._prompts: deque[tuple[Sequence[int], int]] = deque()
        self._rest = 0
        #: Prompts that have each block.
        self.counts: dict[int | None, int] = {}
        #: Prompts.
        self.length = 0
        #: Bytes of all distinct blocks, and of what is in no full block.
        self.size = 0

    def add(self, keys: Sequence[int], rest: int) -> None:
        """Take a prompt of these blocks and ``rest`` bytes more."""
        counts = self.counts
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        self._prompts.append((keys, rest))
        self.length += 1
        self._resize(rest)
        if self.length > MAX_PROMPTS:
            self.keep(MAX_PROMPTS)

    def keep(self, count: int) -> None:
        """Forget the oldest prompts beyond a number."""
        counts = self.counts
        while self.length > count:
            keys, rest = self._prompts.popleft()
            self.length -= 1
            for key in keys:
                left = counts[key] - 1
                if left:
                    counts[key] = left
                else:
                    del counts[key]
            self._resize(-rest)

    def _resize(self, rest: int) -> None:
        self._rest += rest
        self.size = len(self.counts) * BLOCK_BYTES + self._rest

    def shared(self, keys: Sequence[int]) -> int:
        """Return the bytes of a prompt's beginning that are there already."""
        counts = self.counts
        if not keys or keys[0] not in counts:
            return 0
        low, high = 1, len(keys)
        while low < high:  # who has a key has all before it
            middle = (low + high) >> 1
            if keys[middle] in counts:
                low = middle + 1
            else:
                high = middle
        return low * BLOCK_BYTES
