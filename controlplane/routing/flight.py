"""A request in flight: what was predicted of it, and which of its replica's counts it stands in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlplane.routing.load import Replica
    from controlplane.routing.view import View

#: The time of a first byte that has not come.
NOT_YET = -1.0


class Flight:
    """One request between its decision and its end.

    It adds to its replica's counts ``queued_tokens`` (uncached prompt tokens) and ``queued_work``, both 0 once the
    first byte came, ``context_tokens`` (prompt and expected output) and ``kv_tokens`` (the same less what is cached).
    ``predicted_cached`` is the whole prediction, in tokens; -1 when none was made. ``alone`` tells that nobody waited
    at the replica when it came.
    """

    __slots__ = (
        "alone",
        "chain",
        "context_tokens",
        "decided_s",
        "ended_s",
        "first_byte_s",
        "kv_tokens",
        "number",
        "predicted_cached",
        "prompt_bytes",
        "prompt_tokens",
        "queued_tokens",
        "queued_work",
        "replica",
        "view",
        "waiting",
    )

    def __init__(self, replica: Replica, decided_s: float, number: int, view: View | None) -> None:
        self.replica = replica
        self.decided_s = decided_s
        self.number = number
        self.view = view
        self.chain = b""
        self.prompt_bytes = 0
        self.prompt_tokens = 0
        self.queued_tokens = 0
        self.queued_work = 0
        self.context_tokens = 0
        self.kv_tokens = 0
        self.predicted_cached = -1
        self.waiting = 1
        self.alone = False
        self.first_byte_s = NOT_YET
        self.ended_s = NOT_YET

    def begin(self) -> None:
        """Count it at its replica."""
        replica = self.replica
        self.alone = not replica.waiting
        if self.waiting:
            if self.alone:
                replica.head_work, replica.head_since_s = self.queued_work, self.decided_s
            replica.queue[self] = None
        replica.waiting += self.waiting
        replica.queued_tokens += self.queued_tokens
        replica.queued_work += self.queued_work
        replica.context_tokens += self.context_tokens
        replica.kv_tokens += self.kv_tokens
        replica.begin()

    def _leave(self, now_s: float) -> None:
        """Take it out of the queue; the next one's prefill begins when the first one's is over."""
        queue = self.replica.queue
        if self not in queue:
            return
        first = next(iter(queue)) is self
        del queue[self]
        if first:
            following = next(iter(queue), None)
            self.replica.head_work = 0 if following is None else following.queued_work
            self.replica.head_since_s = now_s

    def end(self, now_s: float) -> None:
        """Take everything that it counts for from its replica."""
        self._leave(now_s)
        replica = self.replica
        replica.waiting -= self.waiting
        replica.queued_tokens -= self.queued_tokens
        replica.queued_work -= self.queued_work
        replica.context_tokens -= self.context_tokens
        replica.kv_tokens -= self.kv_tokens
        self.waiting = self.queued_tokens = self.queued_work = self.context_tokens = self.kv_tokens = 0
        replica.end()

    def answer(self, now_s: float) -> None:
        """Note the first byte: it waits for prefill no more."""
        self._leave(now_s)
        replica = self.replica
        replica.waiting -= self.waiting
        replica.queued_tokens -= self.queued_tokens
        replica.queued_work -= self.queued_work
        self.waiting = self.queued_tokens = self.queued_work = 0
        self.first_byte_s = now_s
        replica.sign()

    def move(self, replica: Replica, now_s: float) -> None:
        """Count it at another replica than the chosen one."""
        counts = self.waiting, self.queued_tokens, self.queued_work, self.context_tokens, self.kv_tokens
        self.end(now_s)
        self.replica = replica
        self.waiting, self.queued_tokens, self.queued_work, self.context_tokens, self.kv_tokens = counts
        self.begin()
