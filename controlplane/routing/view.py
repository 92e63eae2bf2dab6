"""What a policy may read when it chooses for one model or adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.routing.load import LoadOrder, Replica
from controlplane.routing.prefix_index import Node, new_root

if TYPE_CHECKING:
    from controlplane.routing.policies.base import Policy
    from controlplane.routing.policies.prefix import Prefix

#: Adapters that a replica is taken to keep resident, the least recently used leaving first. An engine's own limit
#: (vLLM: ``--max-loras``, ``--max-cpu-loras``) is not part of the topology.
RESIDENT_ADAPTERS = 8


class View:
    """One name that clients can ask for.

    ``order`` holds the replicas that may be chosen, shared by a model and its adapters. ``residents`` are those that
    served the adapter recently (empty for a base model). ``root`` is the prefix tree of this name alone. ``label``
    numbers the words that its receipts share.
    """

    __slots__ = ("adapter", "label", "model", "order", "policy", "prefixes", "residents", "root", "session_keys")

    def __init__(self, model: str, adapter: str, order: LoadOrder, policy: Policy) -> None:
        self.model = model
        self.adapter = adapter
        self.order = order
        self.policy = policy
        #: The policy again, when it keeps the tree below ``root``.
        self.prefixes: Prefix | None = None
        self.residents: dict[Replica, None] = {}
        self.root: Node = new_root()
        self.session_keys: tuple[bytes, ...] = ()
        self.label = 0

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
