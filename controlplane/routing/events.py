"""What the routing core hears after a decision. With the topologies, requests and times that it was given, these are
all its inputs: a journal of them rebuilds its state exactly.

Servers are ``<replica>.g<generation>`` as bytes: an event names one incarnation, and one of an older incarnation is
counted and changes nothing. -1 (or -1.0) stands for a number that is not known.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Octets: TypeAlias = bytes


class Completion(NamedTuple):
    """How a request ended, as HAProxy's log tells it. Times in ms; ``first_byte_ms`` is -1 when none came."""

    request_id: Octets
    server: Octets
    status: int
    first_byte_ms: int
    total_ms: int
    bytes: int
    termination: Octets
    retries: int


class FirstByte(NamedTuple):
    """A replica's middleware let the first byte of an answer go: prefill is over."""

    request_id: Octets
    server: Octets


class EngineReport(NamedTuple):
    """What an engine did for one request, told by its middleware when the answer ended.

    ``cached_tokens`` of the ``prompt_tokens`` came from its prefix cache; seconds waiting and in prefill.
    """

    request_id: Octets
    server: Octets
    prompt_tokens: int = -1
    cached_tokens: int = -1
    output_tokens: int = -1
    queue_s: float = -1.0
    prefill_s: float = -1.0


class Telemetry(NamedTuple):
    """An engine's own gauges and totals, read from its ``/metrics``.

    ``kv_use`` is the part of the KV cache in use, 0 to 1. ``prefix_queries`` and ``prefix_hits`` count prompt tokens
    looked up and found, ``generated`` tokens produced, ``preemptions`` requests pushed back, all since its start.
    ``kv_capacity_tokens`` is the size of its KV cache; 0 when it does not tell.
    """

    server: Octets
    running: int
    waiting: int
    kv_use: float
    prefix_queries: int
    prefix_hits: int
    generated: int
    preemptions: int
    kv_capacity_tokens: int = 0


class CacheCleared(NamedTuple):
    """An engine dropped its whole prefix cache."""

    server: Octets
