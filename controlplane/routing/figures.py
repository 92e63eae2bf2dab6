"""What the routing core tells of itself: loads, counts since the start, and how good its predictions were."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.routing.load import NOT_HEARD, Replica


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's load; ``first_byte_ms``, ``kv_use`` and ``telemetry_age_s`` are -1 when nothing was heard."""

    server: str
    name: str
    model: str
    pool: str
    state: str
    in_flight: int
    decisions: int
    first_byte_ms: float
    waiting: int = 0
    queued_tokens: int = 0
    context_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_factor: float = 1.0
    trust: float = 1.0
    kv_use: float = NOT_HEARD
    telemetry_age_s: float = NOT_HEARD


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened since the start."""

    topology_number: int
    decisions: int
    bodies_asked: int
    errors: int
    completions: int
    unmatched: int
    orphans: int
    in_flight: int
    receipts: int
    decisions_by_reason: dict[str, int]
    reports: int = 0
    events_ignored: int = 0


@dataclass(frozen=True, slots=True)
class CachePrediction:
    """Prompt tokens predicted to be cached, and found cached by the engine, of the requests it reported on."""

    model: str
    adapter: str
    predicted_tokens: int
    reported_tokens: int


def load_of(replica: Replica, now_s: float) -> Load:
    """Return a replica's load at a time in seconds since 1970."""
    telemetry = replica.telemetry
    return Load(
        server=replica.info.server,
        name=replica.info.name,
        model=replica.info.model,
        pool=replica.info.pool,
        state=replica.info.state,
        in_flight=replica.in_flight,
        decisions=replica.decisions,
        first_byte_ms=replica.first_byte_ms,
        waiting=replica.waiting,
        queued_tokens=replica.queued_tokens,
        context_tokens=replica.context_tokens,
        prefill_tokens_per_s=replica.rates.prefill_tokens_per_s,
        decode_factor=replica.rates.decode_factor,
        trust=replica.trust,
        kv_use=NOT_HEARD if telemetry is None else telemetry.kv_use,
        telemetry_age_s=NOT_HEARD if telemetry is None else max(0.0, now_s - replica.telemetry_at_s),
    )
