"""How one model's admission behaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Priorities, the most urgent first; a request's priority is the index of its name.
PRIORITIES = ("high", "normal", "low")
HIGH, NORMAL, LOW = range(len(PRIORITIES))
#: Of requests that name none, or may not.
DEFAULT_PRIORITY = NORMAL
PRIORITY_NUMBERS = {name.encode(): number for number, name in enumerate(PRIORITIES)}

#: A first token within this is what people call prompt; measured from the decision on.
TTFT_TARGET_S = 2.0
#: Half a minute is what clients wait before they try again.
TIMEOUT_S = 30.0
#: Nobody waits longer for a first token.
MAX_TIMEOUT_S = 300.0
#: Waiting requests of all models together: HAProxy 2.8 may open a connection to the router for each.
MAX_WAITING = 2_000
#: Waiting requests of one model, and of one tenant within one priority.
MAX_REQUESTS = 1_000
TENANT_REQUESTS = 200
#: Prompt tokens of these: minutes of one replica's prefill.
MAX_TOKENS = 8_000_000
TENANT_TOKENS = 2_000_000
#: Part of the tokens let go that each lower priority gets while more urgent ones wait.
GUARANTEED_SHARE = 0.05
#: Of a tenant that is not listed.
DEFAULT_WEIGHT = 1.0


def priority_of(named: bytes, allowed: bytes) -> int:
    """Return a request's priority: what it names, at most as urgent as its key allows.

    A key that allows none makes the name count for nothing; one that allows less than the default lowers that, too.
    """
    most_urgent = PRIORITY_NUMBERS.get(allowed)
    if most_urgent is None:
        return DEFAULT_PRIORITY
    return max(most_urgent, PRIORITY_NUMBERS.get(named.strip().lower(), DEFAULT_PRIORITY))


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds count waiting requests and their prompt tokens; ``timeouts_s`` are by priority.

    A model is saturated for a request when its best replica's predicted time to the first token is over
    ``ttft_target_s`` and something waits there already. ``weights`` are of tenants; others have 1.
    """

    ttft_target_s: float = TTFT_TARGET_S
    max_requests: int = MAX_REQUESTS
    max_tokens: int = MAX_TOKENS
    tenant_requests: int = TENANT_REQUESTS
    tenant_tokens: int = TENANT_TOKENS
    timeouts_s: tuple[float, ...] = (TIMEOUT_S,) * len(PRIORITIES)
    guaranteed_share: float = GUARANTEED_SHARE
    weights: Mapping[bytes, float] = field(default_factory=dict)

    def weight(self, tenant: bytes) -> float:
        """Return a tenant's weight."""
        return self.weights.get(tenant, DEFAULT_WEIGHT)
