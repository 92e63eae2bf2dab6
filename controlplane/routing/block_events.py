"""What an engine tells of its KV cache, free of the wire: blocks stored, removed, cleared."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TypeAlias

#: Tokens are unsigned, 32 bits, in the machine's order: what an ``array`` of this type code holds.
TYPECODE = "I"
TOKEN_BYTES = 4
#: What an engine calls a block: 64 bits, or the bytes of a digest.
EngineHash: TypeAlias = int | bytes


class Tier(IntEnum):
    """Where a block lies, fastest first."""

    GPU = 0
    HOST = 1
    DISK = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that follow one another, the first after ``parent`` (None: a prompt's first block).

    ``tokens`` are those of all blocks, ``block_tokens`` each; none: blocks that moved to another tier and are known by
    their hashes. ``adapter`` and ``salt`` keep prompts apart. ``extras`` holds, for each block, what else makes it
    differ (media), empty for most; shorter: the rest have none. ``group`` numbers the engine's kinds of cache;
    ``full_attention`` is False for one that keeps only a window, which says nothing of a prompt's beginning.
    """

    hashes: tuple[EngineHash, ...]
    parent: EngineHash | None
    tokens: array[int]
    block_tokens: int
    tier: Tier = Tier.GPU
    adapter: str = ""
    salt: str = ""
    extras: tuple[bytes, ...] = ()
    group: int | None = None
    full_attention: bool = True


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that a tier no longer has."""

    hashes: tuple[EngineHash, ...]
    tier: Tier = Tier.GPU
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing is cached any more."""


BlockEvent: TypeAlias = Stored | Removed | Cleared


class Outcome(Enum):
    """What became of one numbered batch of events."""

    APPLIED = "applied"
    OLD = "old"  # numbered like one that was applied before: ignored
    GAP = "gap"  # batches before it are missing: ignored, and still expected
    UNKNOWN = "unknown"  # of a replica that is not there (any more): ignored


@dataclass(slots=True)
class Counters:
    """What happened since the start; everything but ``batches`` and ``cleared`` was ignored."""

    batches: int = 0
    cleared: int = 0
    old: int = 0
    gaps: int = 0
    unknown_replicas: int = 0
    unknown_parents: int = 0
    unknown_blocks: int = 0
    impossible: int = 0
    other_groups: int = 0
    refused: int = 0
    losses: int = 0


def as_tokens(ids: Iterable[int]) -> array[int]:
    """Return token ids as the index wants them. Raises OverflowError or TypeError for what is no token id."""
    return array(TYPECODE, ids)
