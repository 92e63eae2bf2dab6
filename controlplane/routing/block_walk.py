"""One walk over a prompt's blocks for all replicas together: how far each one's run of cached blocks goes.

Replicas are the bits of integers; ``masks`` map a block's key to the bits of its holders, one mapping for each tier,
fastest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import xxhash

from controlplane.routing.block_events import TOKEN_BYTES

Masks: TypeAlias = Mapping[int, int]
#: How many of a run's blocks lie in host memory, and on disk.
Behind: TypeAlias = tuple[int, int]
#: (weighted tokens, bits of the replicas whose run ends there)
Run: TypeAlias = tuple[int, int]

#: The key of a block: of its tokens' bytes, and as the seed the key of the block before it.
key_after = xxhash.xxh3_64_intdigest


def walk(masks: Sequence[Masks], weights: Sequence[float], data: bytes, key: int, size: int, members: int) -> list[Run]:
    """Return the runs of the replicas ``members``, whose blocks have ``size`` tokens; none for those without a block.

    ``data`` are the prompt's tokens as bytes, ``key`` is the key before its first block. Costs a hash and a lookup for
    each block until nobody holds one, and work for each set of replicas that parts from the others.
    """
    step = size * TOKEN_BYTES
    on_gpu, *lower = masks
    groups: dict[Behind, int] = {(0, 0): members}  # replicas that hold all blocks so far
    ended: list[tuple[int, Behind, int]] = []
    alive = members  # of the only group; -1: there are several
    known = -1  # the mask that all of the only group was last seen to be in
    blocks = 0
    for at in range(0, len(data) - step + 1, step):
        key = key_after(data[at : at + step], key)
        mask = on_gpu.get(key, 0)
        if mask is not known:
            if alive < 0 or alive & mask != alive:
                groups = _part(groups, key, mask, lower, blocks, ended)
                if not groups:
                    break
                alive = next(iter(groups.values())) if len(groups) == 1 else -1
            known = mask if alive >= 0 and alive & mask == alive else -1
        blocks += 1
    ended += [(blocks, behind, bits) for behind, bits in groups.items()]
    return [(_weigh(count, behind, weights, size), bits) for count, behind, bits in ended if count]


def _part(
    groups: Mapping[Behind, int],
    key: int,
    mask: int,
    lower: Sequence[Masks],
    blocks: int,
    ended: list[tuple[int, Behind, int]],
) -> dict[Behind, int]:
    """Divide each group by where its members hold one more block; those that do not hold it have ended."""
    divided: dict[Behind, int] = {}
    for (host, disk), members in groups.items():
        parts = [((host, disk), members & mask)]
        rest = members & ~mask
        for tier, behind in zip(lower, ((host + 1, disk), (host, disk + 1)), strict=True):
            if rest and tier:
                there = rest & tier.get(key, 0)
                parts.append((behind, there))
                rest ^= there
        for behind, part in parts:
            if part:
                divided[behind] = divided.get(behind, 0) | part
        if rest:
            ended.append((blocks, (host, disk), rest))
    return divided


def _weigh(blocks: int, behind: Behind, weights: Sequence[float], size: int) -> int:
    on_gpu, on_host, on_disk = weights
    host, disk = behind
    return int(((blocks - host - disk) * on_gpu + host * on_host + disk * on_disk) * size)


def named(runs: Sequence[Run], servers: Sequence[bytes], limit: int, turn: int) -> dict[bytes, int]:
    """Return {server: tokens} of at most ``limit`` replicas, in the order of the runs.

    Of a run of which only some fit, ``turn`` says which: a number that grows gives others each time.
    """
    found: dict[bytes, int] = {}
    for tokens, mask in runs:
        bits = f"{mask:b}"[::-1]
        room = limit - len(found)
        start = turn % len(bits) if mask.bit_count() > room else 0
        numbers = _ones(bits, start, room)
        numbers += _ones(bits[:start], 0, room - len(numbers))
        for number in numbers:
            found[servers[number]] = tokens
        if len(found) >= limit:
            break
    return found


def _ones(bits: str, start: int, limit: int) -> list[int]:
    """Return the places of at most ``limit`` ones from ``start`` on."""
    found: list[int] = []
    at = bits.find("1", start)
    while at >= 0 and len(found) < limit:
        found.append(at)
        at = bits.find("1", at + 1)
    return found
