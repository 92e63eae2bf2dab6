"""Which replica is taken to cache which prompts: a radix tree over the hashes of their blocks.

A node is a run of blocks, kept as the feature record's own bytes, so that a prompt is compared with memcmp and not
block by block. The invariant: **whoever holds a node holds all nodes above it**, because an engine that caches a
prompt's block caches every block before it. ``Node.holders`` counts, for each holder, the children that it holds too;
a holder with none there has a leaf, and only leaves stand in its LRU order. So eviction takes the tail of the least
recently used prompt first, as engines do, and never breaks the invariant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from controlplane.routing.load import Replica

#: (node, replica) pairs held in all: 0.5 KB each at worst (prompts of one block), 520 MB.
MAX_HOLDINGS = 1_048_576
#: A replica may always hold this many nodes, however many replicas there are.
MIN_NODES_PER_REPLICA = 16
#: Holders that a decision weighs; the least loaded replica always has a place beside them.
HOLDERS_WEIGHED = 7

HASH_BYTES = 8


class Node:
    """A run of blocks that follows its parent's; ``holders`` maps a replica to the number of its held children."""

    __slots__ = ("children", "holders", "parent", "run")

    def __init__(self, run: bytes, parent: Node | None) -> None:
        self.run = run
        self.parent = parent
        self.children: dict[bytes, Node] = {}
        self.holders: dict[Replica, int] = {}


#: How much of a prompt is known: nodes that are wholly in it, the bytes of hashes down to them, and the node that
#: begins like the rest (None: no such), with the bytes of its run that do.
Match: TypeAlias = tuple[list[Node], int, Node | None, int]


#: What is known of an empty chain.
NOTHING: Match = ([], 0, None, 0)


def parts(known: Match) -> list[tuple[dict[Replica, int], int]]:
    """Return (holders, bytes of hashes held) of each part of a prompt that has holders of its own, deepest last."""
    nodes, _, partial, common = known
    depth = 0
    found: list[tuple[dict[Replica, int], int]] = []
    count = -1
    for node in nodes:
        depth += len(node.run)
        holders = node.holders
        # Holders of a part hold all before it: an equal number is the same set, and holds more.
        if len(holders) == count:
            found[-1] = (holders, depth)
        else:
            count = len(holders)
            found.append((holders, depth))
    if partial is not None:
        holders = partial.holders
        if len(holders) == count:
            found[-1] = (holders, depth + common)
        else:
            found.append((holders, depth + common))
    return found


def new_root() -> Node:
    """Return the root of one model's or adapter's prompts: replicas cache per adapter, so nothing is shared."""
    return Node(b"", None)


def share_nodes(replicas: Iterable[Replica]) -> None:
    """Give each replica its part of MAX_HOLDINGS."""
    members = list(replicas)
    part = max(MIN_NODES_PER_REPLICA, MAX_HOLDINGS // max(1, len(members)))
    for replica in members:
        replica.cache_nodes = part


def match(root: Node, hashes: bytes) -> Match:
    """Find the longest known beginning of a chain."""
    nodes: list[Node] = []
    node = root
    at = 0
    while True:
        child = node.children.get(hashes[at : at + HASH_BYTES])
        if child is None:
            return nodes, at, None, 0
        run = child.run
        if not hashes.startswith(run, at):
            return nodes, at, child, _common(run, hashes, at)
        at += len(run)
        nodes.append(child)
        node = child


def _common(run: bytes, hashes: bytes, at: int) -> int:
    """Return how many bytes of ``run`` stand in ``hashes`` at ``at``: whole blocks, at least one, not all."""
    low, high = 1, min(len(run), len(hashes) - at) // HASH_BYTES
    while low < high:
        middle = (low + high + 1) >> 1
        if hashes.startswith(run[: middle * HASH_BYTES], at):
            low = middle
        else:
            high = middle - 1
    return low * HASH_BYTES


def hold(root: Node, replica: Replica, hashes: bytes, known: Match, prompt_bytes: int = 0) -> None:
    """Note that ``replica`` is about to cache this chain; ``known`` is its fresh match. Evicts what no longer fits.

    The leaf remembers ``prompt_bytes``, the length of the whole prompt behind the chain.
    """
    limit = replica.cache_blocks * HASH_BYTES
    if len(hashes) > limit:
        hashes = hashes[:limit]
        known = match(root, hashes)
    if not hashes:
        return
    nodes, at, partial, common = known
    if partial is not None:
        nodes.append(_split(partial, common))
        at += common
    leaf = nodes[-1] if nodes else root
    if nodes and replica not in leaf.holders:
        _join(nodes, replica)
    if at < len(hashes):
        leaf = _extend(root, leaf, replica, hashes[at:])
    if not leaf.holders[replica]:
        leaves = replica.leaves
        leaves[leaf] = prompt_bytes
        leaves.move_to_end(leaf)
    if replica.held_blocks > replica.cache_blocks or replica.held_nodes > replica.cache_nodes:
        _evict(replica)


def release(root: Node, replica: Replica, hashes: bytes) -> None:
    """Forget the end of a chain at a replica that did not get the request; what it shares with others stays."""
    nodes, _, partial, _ = match(root, hashes)
    if partial is not None:
        nodes.append(partial)
    if nodes and nodes[-1].holders.get(replica) == 0:
        _drop(nodes[-1], replica)


def release_all(replica: Replica) -> None:
    """Forget everything that a replica holds; costs its own nodes only."""
    while replica.leaves:
        _drop(next(iter(replica.leaves)), replica)


def clear(root: Node) -> None:
    """Forget a whole tree."""
    below = list(root.children.values())
    root.children.clear()
    while below:
        node = below.pop()
        below.extend(node.children.values())
        node.parent = None
        node.children.clear()
        for replica in node.holders:
            replica.leaves.pop(node, None)
            replica.held_nodes -= 1
            replica.held_blocks -= len(node.run) // HASH_BYTES


def _split(node: Node, size: int) -> Node:
    """Cut a node's run after ``size`` bytes; return the upper part. The lower part keeps its place in LRU orders."""
    upper = Node(node.run[:size], node.parent)
    assert node.parent is not None
    node.parent.children[node.run[:HASH_BYTES]] = upper
    node.run = node.run[size:]
    node.parent = upper
    upper.children[node.run[:HASH_BYTES]] = node
    upper.holders = dict.fromkeys(node.holders, 1)
    for holder in upper.holders:
        holder.held_nodes += 1
    return upper


def _join(nodes: list[Node], replica: Replica) -> None:
    """Add a holder to the last of ``nodes`` and to those above it that it does not hold yet."""
    held_children = 0
    for node in reversed(nodes):
        if replica in node.holders:
            if not node.holders[replica]:
                del replica.leaves[node]
            node.holders[replica] += 1
            return
        node.holders[replica] = held_children
        replica.held_nodes += 1
        replica.held_blocks += len(node.run) // HASH_BYTES
        held_children = 1


def _extend(root: Node, parent: Node, replica: Replica, rest: bytes) -> Node:
    """Add blocks after ``parent``; return the node that ends with them."""
    replica.held_blocks += len(rest) // HASH_BYTES
    if parent is not root:
        if not parent.children and len(parent.holders) == 1:
            parent.run += rest  # a conversation that grows on one replica stays one node
            return parent
        if not parent.holders[replica]:
            replica.leaves.pop(parent, None)  # it is not there yet when it has just been joined
        parent.holders[replica] += 1
    node = Node(rest, parent)
    node.holders[replica] = 0
    parent.children[rest[:HASH_BYTES]] = node
    replica.held_nodes += 1
    return node


def _evict(replica: Replica) -> None:
    while True:
        excess = replica.held_blocks - replica.cache_blocks
        if excess <= 0 and replica.held_nodes <= replica.cache_nodes:
            return
        leaf = next(iter(replica.leaves))
        blocks = len(leaf.run) // HASH_BYTES
        if 0 < excess < blocks and len(leaf.holders) == 1 and replica.held_nodes <= replica.cache_nodes:
            leaf.run = leaf.run[: (blocks - excess) * HASH_BYTES]  # a leaf of its only holder: no child follows
            replica.held_blocks -= excess
            return
        _drop(leaf, replica)


def _drop(leaf: Node, replica: Replica) -> None:
    """Take one leaf from its holder; a node that nobody holds leaves the tree."""
    del replica.leaves[leaf]
    del leaf.holders[replica]
    replica.held_nodes -= 1
    replica.held_blocks -= len(leaf.run) // HASH_BYTES
    parent = leaf.parent
    assert parent is not None
    if not leaf.holders:
        del parent.children[leaf.run[:HASH_BYTES]]
    if parent.parent is not None:
        parent.holders[replica] -= 1
        if not parent.holders[replica]:
            # Its child was the oldest, so nothing in it is younger.
            replica.leaves[parent] = 0
            replica.leaves.move_to_end(parent, last=False)
