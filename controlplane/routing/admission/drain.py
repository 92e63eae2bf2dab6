"""How fast a queue empties, and so when it is worth to come back."""

from __future__ import annotations

from math import ceil, exp

#: Seconds over which the rate is smoothed: a few answers of a busy replica.
MEMORY_S = 10.0
#: Retry-After in seconds: never 0, and never so long that a client gives up on an idle service.
MIN_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 60


class Drain:
    """Tokens let go per second, as an exponentially decaying mean since the queue was last empty."""

    __slots__ = ("_began_s", "_tokens", "_updated_s")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._began_s = 0.0
        self._updated_s = 0.0

    def begin(self, now_s: float) -> None:
        """Start to measure: the first one waits. What was learned within the memory is kept."""
        if not self._tokens or now_s - self._updated_s > MEMORY_S:
            self._tokens = 0.0
            self._began_s = self._updated_s = now_s

    def released(self, cost: int, now_s: float) -> None:
        """Count one request that goes."""
        self._tokens = self._decayed(now_s) + cost
        self._updated_s = now_s

    def tokens_per_s(self, now_s: float) -> float:
        """Return the rate; 0 when nothing has gone."""
        # A mean over the time that was seen, and not as if the past before it had been idle.
        seen = MEMORY_S * (1.0 - exp(-max(now_s - self._began_s, 0.0) / MEMORY_S))
        return self._decayed(now_s) / max(seen, 1.0)

    def retry_after_s(self, cost: int, timeout_s: float, now_s: float) -> int:
        """Return whole seconds until so many tokens have gone; a queue is empty after its timeout in any case."""
        rate = self.tokens_per_s(now_s)
        after_s = min(cost / rate if rate > 0.0 else timeout_s, timeout_s, MAX_RETRY_AFTER_S)
        return max(MIN_RETRY_AFTER_S, ceil(after_s))

    def _decayed(self, now_s: float) -> float:
        return self._tokens * exp(-max(now_s - self._updated_s, 0.0) / MEMORY_S)
