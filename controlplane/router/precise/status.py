"""What the router tells of its precise models."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from controlplane.router.precise.matching import Matching
from dataplane.pb import routing_pb2 as pb

#: Counts of an index that are of what was taken, not of what was ignored.
_TAKEN = frozenset(("batches", "cleared"))


def message(matching: Matching) -> pb.PreciseStatus:
    """Return counts since the start and the size of each model's index."""
    counters = matching.counters
    ignored: Counter[str] = Counter()
    models = []
    for name, tokenizer, index in matching.models():
        servers = tuple(index.servers)
        models.append(
            pb.PreciseModel(
                model=name,
                tokenizer=tokenizer,
                replicas=len(servers),
                incomplete=sum(not index.complete(server) for server in servers),
                blocks=len(index),
            )
        )
        for field in fields(index.counters):
            if field.name not in _TAKEN:
                ignored[field.name] += getattr(index.counters, field.name)
    return pb.PreciseStatus(
        models=models,
        matched=counters.matched,
        fallbacks=counters.fallbacks,
        tokenised=counters.tokenised,
        messages=counters.messages,
        malformed=counters.malformed,
        strangers=counters.strangers,
        replays=counters.replays,
        replayed=counters.replayed,
        replay_failures=counters.replay_failures,
        restarts=counters.restarts,
        ignored=+ignored,
    )
