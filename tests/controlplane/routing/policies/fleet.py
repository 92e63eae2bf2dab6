"""A model's replicas around one policy, driven by hand: what a policy reads is plain to see and to compute again."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from controlplane.routing.load import BLOCK_BYTES, Replica
from controlplane.routing.load_order import LoadOrder
from controlplane.routing.policies.registry import make
from controlplane.routing.prefix_index import share_nodes
from controlplane.routing.view import View
from tests.controlplane.routing import worlds

#: Tokens of one block: 4 bytes each.
BLOCK_TOKENS = BLOCK_BYTES // 4


class Fleet:
    """Requests end in the order in which they came to their replica."""

    def __init__(self, policy: str, count: int, parameters: Mapping[str, float] | None = None, seed: int = 0) -> None:
        self.policy = make(policy, parameters or {}, seed)
        self.replicas = [Replica(worlds.replica(f"p-{number:04}"), number) for number in range(count)]
        share_nodes(self.replicas)
        self.order = LoadOrder(self.replicas)
        self.view = View("m", "", self.order, self.policy)
        self.policy.refresh(self.replicas, [replica.info.name for replica in self.replicas])
        #: The prompts at each replica, and their uncached tokens that still wait.
        self.active: dict[Replica, deque[tuple[tuple[object, ...], list[int]]]] = {
            replica: deque() for replica in self.replicas
        }
        #: Who is expected to be weighed, when that is known.
        self.expected: set[Replica] | None = None
        #: Every prompt that was ever sent: (replica, blocks), oldest first.
        self.sent: list[tuple[Replica, tuple[object, ...]]] = []

    def ask(self, blocks: Sequence[object], session: str = "", now_s: float = 0.0) -> Replica:
        """Decide a request and send it."""
        self.view.known = None
        request = worlds.request(blocks=blocks, session=session)
        candidates, scores, held, _, over, terms = self.policy.choose(self.view, request, now_s)
        assert 1 <= len(set(candidates)) == len(candidates) <= 8
        assert over == 0
        if self.expected is not None:
            assert set(candidates) <= self.expected
            assert len(candidates) == min(8, len(self.expected))
        assert scores is None or len(scores) == len(candidates)
        assert held is not None
        assert held == [self.depth(replica, blocks) for replica in candidates]
        assert terms is None or len(terms) == len(candidates) * len(self.policy.terms)
        winner = candidates[0]
        uncached = (len(blocks) - held[0]) * BLOCK_TOKENS
        self.view.hold(winner)
        winner.waiting += 1
        winner.queued_tokens += uncached
        winner.begin()
        self.active[winner].append((tuple(blocks), [uncached]))
        self.sent.append((winner, tuple(blocks)))
        return winner

    def first_byte(self, replica: Replica) -> None:
        """End the prefill of a replica's oldest request that still waits."""
        for _, waiting in self.active[replica]:
            if waiting:
                replica.waiting -= 1
                replica.queued_tokens -= waiting.pop()
                return

    def end(self, replica: Replica) -> None:
        """End a replica's oldest request."""
        if self.active[replica]:
            _, waiting = self.active[replica].popleft()
            replica.waiting -= len(waiting)
            replica.queued_tokens -= sum(waiting)
            replica.end()

    def depth(self, replica: Replica, blocks: Sequence[object]) -> int:
        """Return how many blocks of a prompt a replica was sent before; nothing is evicted here."""
        return max((common(blocks, prompt) for holder, prompt in self.sent if holder is replica), default=0)


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many blocks two prompts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))
