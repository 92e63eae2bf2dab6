"""Prompts as engines and the router see them: the same content, in two sizes of blocks.

The engine's blocks are numbers (``cache.block``). The router's are 8 bytes for each 4,096 bytes of body, made here
from the pieces of engine blocks that lie in them: equal content at an equal place gives an equal hash, so prompts
that share their beginning share their first router blocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from controlplane.routing.load import BLOCK_BYTES, BYTES_PER_TOKEN
from controlplane.routing.record import MAX_HASH_BYTES
from controlplane.simulation.cache import BLOCK_TOKENS, LENGTH, block

#: Tokens in one of the router's blocks.
ROUTER_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
#: Router blocks that HAProxy sends at most; the rest of a long prompt is not seen.
ROUTER_BLOCKS = MAX_HASH_BYTES // 8

_digest = xxhash.xxh64_digest


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One request of a workload. ``at_s`` is the time since the start; ``hashes`` are the router's.

    ``kept`` are the blocks that its output leaves in the engine's cache, for prompts that go on from it. ``user``
    numbers the closed loop that it belongs to (-1: none).
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]
    hashes: bytes
    session: bytes = b""
    kept: Sequence[int] = ()
    user: int = -1


def router_hashes(blocks: Sequence[int], limit: int = ROUTER_BLOCKS) -> bytes:
    """Return the router's hashes of a prompt; the last one may be of a block that is not full."""
    text = Text(limit)
    text.add(blocks)
    return text.hashes()


class Text:
    """A prompt that grows. Full router blocks are hashed once."""

    __slots__ = ("_full", "_limit", "_pieces", "_room", "blocks", "tokens")

    def __init__(self, limit: int = ROUTER_BLOCKS) -> None:
        self.blocks: list[int] = []
        self.tokens = 0
        self._limit = limit
        self._full = bytearray()
        #: What lies in the router block that is not full: whole blocks by number; parts by -number, start and length.
        self._pieces: list[int] = []
        self._room = ROUTER_TOKENS

    def copy(self) -> Text:
        """Return the same text, to go on from in another way."""
        other = Text(self._limit)
        other.blocks = self.blocks.copy()
        other.tokens = self.tokens
        other._full = bytearray(self._full)
        other._pieces = self._pieces.copy()
        other._room = self._room
        return other

    def add(self, blocks: Sequence[int]) -> None:
        """Append content."""
        self.blocks += blocks
        self.tokens += sum([number & LENGTH for number in blocks])
        full = self._full
        most = 8 * self._limit
        pieces = self._pieces
        room = self._room
        for number in blocks:
            size = number & LENGTH
            if size < room:
                pieces.append(number)
                room -= size
                continue
            at = 0
            while size >= room:
                if len(full) >= most:
                    return
                pieces += (number,) if not at and size == room else (-number, at, room)
                full += _digest(array("q", pieces).tobytes())
                pieces.clear()
                at += room
                size -= room
                room = ROUTER_TOKENS
            if size:
                pieces += (-number, at, size)
                room -= size
        self._room = room

    def hashes(self) -> bytes:
        """Return the router's hashes so far."""
        full = bytes(self._full)
        if self._pieces and len(full) < 8 * self._limit:
            return full + _digest(array("q", self._pieces).tobytes())
        return full


class Contents:
    """Numbers new content, from ``first`` on: 2 ** 32 blocks have room before the next multiple of that."""

    __slots__ = ("_next",)

    def __init__(self, first: int = 0) -> None:
        self._next = first

    def new(self, count: int) -> list[int]:
        """Return the blocks of ``count`` tokens that nobody has seen before."""
        made = []
        serial = self._next
        while count > 0:
            made.append(block(serial, min(count, BLOCK_TOKENS)))
            serial += 1
            count -= BLOCK_TOKENS
        self._next = serial
        return made
