"""The replicas that a policy weighs whose original scores one and all, and what each of them caches.

Up to 64 replicas all are weighed, so the scan is exact. Beyond, a decision weighs 64: at most 32 that hold a part of
the prompt, deepest first, and the least loaded. Left out are replicas that neither hold any of it nor are among the
least loaded, and of more than 32 equal holders the busier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from controlplane.routing.load import BLOCK_BYTES, CANDIDATES, Replica
from controlplane.routing.prefix_index import HASH_BYTES, Match, parts
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: Replicas that one decision weighs: what a Python loop of half a microsecond for each can afford.
MAX_WEIGHED = 64
#: Of these, holders of the prompt's parts; the least loaded always have as many places.
MAX_HOLDERS = 32


def full_blocks(view: View) -> int:
    """Return how many blocks of the prompt that was just looked up can be known: a last one that is not full cannot."""
    return len(view.chain) // HASH_BYTES if view.known is not None else 0


def depth_at(found: Sequence[tuple[Mapping[Replica, int], int]], replica: Replica) -> int:
    """Return how many blocks of a prompt with these ``parts`` a replica holds."""
    return next((depth // HASH_BYTES for holders, depth in reversed(found) if replica in holders), 0)


def cached_tokens(view: View, request: Request, known: Match) -> tuple[dict[Replica, float], float]:
    """Return what each replica that may be chosen caches of the prompt, deepest first, and how much it could; tokens.

    By the engines' own events where the model is ``precise``, else by the prefix tree, which knows whole blocks.
    """
    order = view.order
    exact = view.held
    if exact is not None:
        total = float(view.tokens(request.prompt_bytes))
        held = ((min(float(tokens), total), replica) for replica, tokens in exact.items() if replica.order is order)
        deepest = sorted(held, key=lambda entry: -entry[0])
        return {replica: tokens for tokens, replica in deepest[:MAX_WEIGHED]}, total
    block = BLOCK_BYTES / view.bytes_per_token
    cached: dict[Replica, float] = {}
    if known[0] or known[2] is not None:
        few = len(order.replicas) > MAX_WEIGHED
        for holders, depth in reversed(parts(known)):
            tokens = depth // HASH_BYTES * block
            for replica in _least_of(view, holders) if few and len(holders) > MAX_HOLDERS else holders:
                if replica.order is order and replica not in cached:
                    cached[replica] = tokens
            if few and len(cached) >= MAX_HOLDERS:
                break
    return cached, full_blocks(view) * block


def _least_of(view: View, holders: dict[Replica, int]) -> Iterable[Replica]:
    """Return a few of many holders: those among the least loaded replicas, then the first."""
    return [
        *(replica for replica in view.order.replicas[:MAX_WEIGHED] if replica in holders),
        *islice(holders, MAX_HOLDERS),
    ]


def weighed(view: View, members: Sequence[Replica], holders: Iterable[Replica]) -> Sequence[Replica]:
    """Return the replicas to weigh: all ``members`` up to 64, else 64 of the holders and the least loaded.

    ``members`` are those that may be chosen, by name; what is returned is not to be changed.
    """
    if len(members) <= MAX_WEIGHED:
        return members
    chosen = dict.fromkeys(islice(holders, MAX_HOLDERS))
    chosen.update(dict.fromkeys(view.order.replicas[: MAX_WEIGHED - len(chosen)]))
    return list(chosen)


def best_first(scores: Sequence[float], winner: int) -> list[int]:
    """Return the places of the lowest scores, at most 8, the winner's before all."""
    places = sorted(range(len(scores)), key=scores.__getitem__)[:CANDIDATES]
    if places[0] != winner:
        if winner in places:
            places.remove(winner)
        else:
            places.pop()
        places.insert(0, winner)
    return places


def lowest(scores: Sequence[float]) -> list[int]:
    """Return the places of all that have the lowest score."""
    least = min(scores)
    return [place for place, score in enumerate(scores) if score == least]


def blocks_of(view: View, tokens: float) -> int:
    """Return tokens as the whole blocks that receipts show."""
    return int(tokens * view.bytes_per_token / BLOCK_BYTES + 0.5)
