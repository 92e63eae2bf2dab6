"""Prompts that were sent a moment ago: their replica will cache them, and has not told of it yet.

Without these, a burst of requests with one new beginning would be spread over all replicas, each to compute it.
"""

from __future__ import annotations

from array import array
from collections import deque

#: Seconds that a prompt counts as cached where it was sent; by then the engine's own events tell. llm-d's router
#: (speculativeIndexing) takes 2 s too.
TTL_S = 2.0
#: Prompts that are compared; beyond so many in 2 s the oldest are left out.
MAX_PROMPTS = 128
#: A shorter common beginning is not worth a choice: it is every prompt's of a model.
MIN_TOKENS = 64


class Recent:
    """The last prompts of one model."""

    def __init__(self) -> None:
        self._sent: deque[tuple[float, bytes, tuple[str, str], array[int]]] = deque(maxlen=MAX_PROMPTS)

    def add(self, server: bytes, space: tuple[str, str], tokens: array[int], now_s: float) -> None:
        """Note that a prompt goes to a replica now.

        ``space`` is what prompts may share blocks under, adapter and salt; ``now_s`` is of a monotonic clock.
        """
        if len(tokens) >= MIN_TOKENS:
            self._sent.append((now_s + TTL_S, server, space, tokens))

    def raise_to(self, held: dict[bytes, int], space: tuple[str, str], tokens: array[int], now_s: float) -> None:
        """Raise what replicas hold of a prompt to what they were sent of it; the best stays first."""
        sent = self._sent
        while sent and sent[0][0] <= now_s:
            sent.popleft()
        raised = False
        head = tokens[:MIN_TOKENS]
        for _, server, of, other in sent:
            if of == space and other[:MIN_TOKENS] == head and len(head) == MIN_TOKENS:
                common = _common(tokens, other)
                if common > held.get(server, 0):
                    held[server] = common
                    raised = True
        if raised:
            ordered = sorted(held.items(), key=lambda item: -item[1])
            held.clear()
            held.update(ordered)


def _common(one: array[int], other: array[int]) -> int:
    """Return how many of the first tokens are the same."""
    low, high = MIN_TOKENS, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) >> 1
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
