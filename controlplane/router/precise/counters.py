"""What precise routing counts about itself; all numbers since the router's start."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Written only on the router's event loop. ``fallbacks`` are by reason: those requests went by their text."""

    messages: int = 0  # batches of KV events that came
    malformed: int = 0  # of these, what could not be read
    strangers: int = 0  # of these, from an incarnation that the topology does not have
    replays: int = 0
    replayed: int = 0  # batches that came by replay
    replay_failures: int = 0
    restarts: int = 0  # engines that began to count again
    tokenised: int = 0
    matched: int = 0  # requests that were routed by what replicas really cache
    fallbacks: dict[str, int] = field(default_factory=dict)

    def fall_back(self, reason: str) -> None:
        """Count a request that is routed by its text."""
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + 1
