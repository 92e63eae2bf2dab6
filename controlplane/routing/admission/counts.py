"""What became of the requests that met a saturated model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Shed(StrEnum):
    """Why a request was told to come back later."""

    TENANT_REQUESTS = "tenant_requests"
    TENANT_TOKENS = "tenant_tokens"
    QUEUE_REQUESTS = "queue_requests"
    QUEUE_TOKENS = "queue_tokens"
    DISPLACED = "displaced"
    TIMEOUT = "timeout"
    ROUTER_FULL = "router_full"


@dataclass(slots=True)
class Counts:
    """Of one priority, since the start. ``waited == released + left + timeouts + displaced + those that wait``."""

    waited: int = 0
    released: int = 0
    left: int = 0
    released_tokens: int = 0
    released_waited_s: float = 0.0
    shed: Counter[Shed] = field(default_factory=Counter)
