"""What a policy may read when it chooses for one model or adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import xxhash

from controlplane.routing.load import BLOCK_BYTES, BYTES_PER_TOKEN, Replica
from controlplane.routing.load_order import LoadOrder
from controlplane.routing.prefix_index import HASH_BYTES, NOTHING, Match, Node, hold, match, new_root, release
from controlplane.routing.record import WHOLE_BODY, Request

if TYPE_CHECKING:
    from controlplane.routing.admission.gate import Asked
    from controlplane.routing.admission.queue import Queue
    from controlplane.routing.policies.base import Policy

#: Adapters that a replica is taken to keep resident, the least recently used leaving first. An engine's own limit
#: (vLLM: ``--max-loras``, ``--max-cpu-loras``) is not part of the topology.
RESIDENT_ADAPTERS = 8


#: Before anything is known of a model's requests: English text, and a short answer.
DEFAULT_BYTES_PER_TOKEN = float(BYTES_PER_TOKEN)
DEFAULT_OUTPUT_TOKENS = 256.0
#: What is believed stays within these: JSON escapes and many-byte scripts at one end, base64 images at the other.
BYTES_PER_TOKEN_RANGE = (1.0, 64.0)
#: Weight of the newest request in what is learned of a model's requests.
TRAFFIC_WEIGHT = 0.05


def whole_prompt_bytes(request: Request) -> int:
    """Return the length of a prompt, of which ``prompt_bytes`` may be no more than what HAProxy could buffer."""
    return request.prompt_bytes if request.flags & WHOLE_BODY else max(request.prompt_bytes, request.body_bytes)


class View:
    """One name that clients can ask for.

    ``order`` holds the replicas that may be chosen, shared by a model and its adapters. ``residents`` are those that
    served the adapter recently (empty for a base model). ``root`` is the prefix tree of this name alone. ``label``
    numbers the words that its receipts share. ``bytes_per_token`` and ``output_tokens`` (mean) are learned.
    ``isolated`` keeps the tenants' prompts apart. ``held`` are the cached tokens of the request that is being decided,
    by replica, when they are known exactly.
    """

    __slots__ = (
        "adapter",
        "bytes_per_token",
        "chain",
        "held",
        "isolated",
        "keeps_prefixes",
        "known",
        "label",
        "model",
        "order",
        "output_tokens",
        "policy",
        "predicted",
        "predicted_cached_tokens",
        "prompt_bytes",
        "queue",
        "reported_cached_tokens",
        "residents",
        "root",
        "session_keys",
    )

    def __init__(self, model: str, adapter: str, order: LoadOrder, policy: Policy) -> None:
        self.model = model
        self.adapter = adapter
        self.order = order
        self.policy = policy
        self.keeps_prefixes = False
        self.residents: dict[Replica, None] = {}
        self.root: Node = new_root()
        self.session_keys: tuple[bytes, ...] = ()
        self.label = 0
        self.isolated = False
        self.bytes_per_token = DEFAULT_BYTES_PER_TOKEN
        self.output_tokens = DEFAULT_OUTPUT_TOKENS
        #: Of all requests that an engine reported on, since the start.
        self.predicted_cached_tokens = 0
        self.reported_cached_tokens = 0
        #: The last lookup: ``hold`` follows it at once.
        self.chain = b""
        self.prompt_bytes = 0
        #: Tokens that the policy takes the winner to cache; -1 when it makes no such prediction.
        self.predicted = -1
        self.known: Match | None = None
        self.held: Mapping[Replica, int] | None = None
        #: Of the model's admission, when it has one.
        self.queue: Queue[Asked] | None = None

    def lookup(self, request: Request) -> Match:
        """Return what is known of a request's prompt, and keep it for ``hold``. A block that is not full is left out.

        The tenants of an isolated model have first blocks of their own, so that none meets another's prompts.
        """
        hashes = request.hashes
        if (len(hashes) >> 3) * BLOCK_BYTES > request.prompt_bytes:
            hashes = hashes[:-HASH_BYTES]
        if not hashes:
            self.known = None
            return NOTHING
        if self.isolated:
            hashes = xxhash.xxh64_digest(hashes[:HASH_BYTES] + request.tenant) + hashes[HASH_BYTES:]
        self.chain = hashes
        self.prompt_bytes = whole_prompt_bytes(request)
        self.known = known = match(self.root, hashes)
        return known

    def hold(self, replica: Replica) -> bytes:
        """Note that a replica is about to cache the prompt of the last lookup; return its chain (empty: none)."""
        known = self.known
        if known is None:
            return b""
        self.known = None
        hold(self.root, replica, self.chain, known, self.prompt_bytes)
        return self.chain

    def move(self, chain: bytes, chosen: Replica, answered: Replica) -> None:
        """Note that a prompt went to another replica than the chosen one."""
        if chosen.order is self.order:
            release(self.root, chosen, chain)
        if answered.order is self.order:
            hold(self.root, answered, chain, match(self.root, chain))

    def tokens(self, prompt_bytes: int) -> int:
        """Return how many tokens a prompt probably has."""
        return int(prompt_bytes / self.bytes_per_token)

    def expected_output(self, max_tokens: int) -> int:
        """Return how many tokens an answer probably has; ``max_tokens`` is 0 when the client set no limit."""
        mean = int(self.output_tokens)
        return min(mean, max_tokens) if max_tokens else mean

    def saw_request(self, prompt_bytes: int, prompt_tokens: int, output_tokens: int) -> None:
        """Learn from what an engine counted; -1 for what it did not tell."""
        if prompt_tokens > 0 and prompt_bytes > 0:
            low, high = BYTES_PER_TOKEN_RANGE
            ratio = min(max(prompt_bytes / prompt_tokens, low), high)
            self.bytes_per_token += TRAFFIC_WEIGHT * (ratio - self.bytes_per_token)
        if output_tokens >= 0:
            self.output_tokens += TRAFFIC_WEIGHT * (output_tokens - self.output_tokens)

    def served_by(self, replica: Replica) -> None:
        """Note that a replica serves the adapter now; it forgets its least recently used one beyond the limit."""
        kept = replica.adapters
        kept.pop(self, None)
        kept[self] = None
        self.residents[replica] = None
        if len(kept) > RESIDENT_ADAPTERS:
            oldest = next(iter(kept))
            del kept[oldest]
            oldest.residents.pop(replica, None)
