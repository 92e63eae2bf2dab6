"""A request that waits."""

from __future__ import annotations

from typing import Generic, TypeVar

Payload = TypeVar("Payload")


class Waiter(Generic[Payload]):
    """One waiting request; hashed by identity.

    ``tokens`` are of its prompt, ``cost`` adds the output that is expected; ``number`` is its place among all that
    ever came to the queue. ``payload`` is what the caller needs to decide it later.
    """

    __slots__ = ("arrived_s", "cost", "deadline_s", "number", "payload", "priority", "request_id", "tenant", "tokens")

    def __init__(
        self,
        request_id: bytes,
        tenant: bytes,
        priority: int,
        tokens: int,
        output_tokens: int,
        arrived_s: float,
        payload: Payload,
    ) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.priority = priority
        self.tokens = max(0, tokens)
        # Nothing is free: an empty prompt still takes a step.
        self.cost = max(1, self.tokens + max(0, output_tokens))
        self.arrived_s = arrived_s
        self.deadline_s = arrived_s
        self.payload = payload
        self.number = 0
