"""How busy each replica is, and the replicas of a model in the order of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from controlplane.routing.fleet import ReplicaInfo
from dataplane.names import host_port

if TYPE_CHECKING:
    from controlplane.routing.prefix_index import Node
    from controlplane.routing.view import View

#: Candidates that a decision weighs and a receipt keeps.
CANDIDATES = 8
#: Blocks of 4,096 bytes that a replica is taken to cache when it does not tell its KV size: 512 Ki tokens.
DEFAULT_CACHE_BLOCKS = 512
#: Bytes of prompt text behind one token, and bytes in one block of the feature record.
BYTES_PER_TOKEN = 4
BLOCK_BYTES = 4096

#: A replica's signals as a receipt keeps them: serial, requests in flight, first byte in ms, when that was heard.
SIGNALS = Struct("<IIfd")
#: The first byte's time when none was heard.
NOT_HEARD = -1.0


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What to do with one request.

    ``outcome`` is ``go``, ``more`` (send the body), ``error`` or ``shed``. ``pool`` and ``server`` are the bytes for
    the wire, empty unless ``go``; ``error`` is a code of ``dataplane/errors.py``, empty unless ``error``. Equal
    decisions about one server are one object between two topologies, and compare by identity.
    """

    outcome: str
    pool: bytes = b""
    server: bytes = b""
    error: str = ""
    retry_after_s: int = 0
    pool_name: str = ""
    server_name: str = ""
    address: str = ""


class Replica:
    """State of one incarnation. Mutable, owned by the core, hashed by identity.

    ``in_flight`` counts requests that were sent there and have not ended: ``base`` of them were not decided here.
    """

    __slots__ = (
        "adapters",
        "base",
        "cache_blocks",
        "cache_nodes",
        "decision",
        "decisions",
        "excess",
        "first_byte_at_s",
        "first_byte_ms",
        "held_blocks",
        "held_nodes",
        "in_flight",
        "info",
        "leaves",
        "order",
        "position",
        "serial",
        "server",
        "signals",
    )

    def __init__(self, info: ReplicaInfo, serial: int) -> None:
        self.serial = serial
        self.in_flight = 0
        self.base = 0
        self.excess: int | None = None
        self.decisions = 0
        self.first_byte_ms = NOT_HEARD
        self.first_byte_at_s = 0.0
        self.order: LoadOrder | None = None
        self.position = 0
        self.adapters: dict[View, None] = {}
        self.leaves: OrderedDict[Node, None] = OrderedDict()
        self.held_blocks = 0
        self.held_nodes = 0
        self.cache_nodes = 1
        self.describe(info)
        self.sign()

    def describe(self, info: ReplicaInfo) -> None:
        """Take what a new topology says of the same incarnation."""
        self.info = info
        self.server = info.server.encode()
        told = info.kv_capacity_tokens * BYTES_PER_TOKEN // BLOCK_BYTES
        self.cache_blocks = max(1, told) if info.kv_capacity_tokens else DEFAULT_CACHE_BLOCKS
        self.decision = Decision(
            outcome="go",
            pool=info.pool.encode(),
            server=self.server,
            pool_name=info.pool,
            server_name=info.server,
            address=host_port(info.host, info.port),
        )

    def sign(self) -> None:
        """Pack the signals again; every change of one is followed by this, so that a receipt only joins bytes."""
        self.signals = SIGNALS.pack(self.serial, self.in_flight, self.first_byte_ms, self.first_byte_at_s)

    def begin(self) -> None:
        """Count one more request in flight."""
        order = self.order
        if order is None:
            self.in_flight += 1
        else:
            order.raise_load(self)
        self.signals = SIGNALS.pack(self.serial, self.in_flight, self.first_byte_ms, self.first_byte_at_s)

    def end(self) -> None:
        """Count one request fewer in flight."""
        order = self.order
        if order is None:
            self.in_flight -= 1
        else:
            order.lower_load(self)
        self.signals = SIGNALS.pack(self.serial, self.in_flight, self.first_byte_ms, self.first_byte_at_s)


class LoadOrder:
    """Replicas sorted by requests in flight; one request more or fewer costs O(1), whatever their number.

    ``replicas`` is sorted by ``in_flight``; ``ends[k]`` is the number of replicas with at most k in flight. A load
    changes by one at a time, so a replica is swapped with the last (or first) of its equals and the border between
    the two loads moves past it: the list is sorted again after two writes.
    """

    __slots__ = ("_turn", "ends", "replicas", "total")

    def __init__(self, replicas: Iterable[Replica] = ()) -> None:
        self._turn = -1
        self.replicas: list[Replica] = []
        self.ends: list[int] = [0]
        self.total = 0
        self.fill(replicas)

    def fill(self, replicas: Iterable[Replica]) -> None:
        """Start again with these replicas, each with the load that it has."""
        for replica in self.replicas:
            replica.order = None
        self.replicas = sorted(replicas, key=lambda replica: (replica.in_flight, replica.info.name))
        self.total = sum(replica.in_flight for replica in self.replicas)
        highest = self.replicas[-1].in_flight if self.replicas else 0
        self.ends = [0] * (highest + 1)
        for position, replica in enumerate(self.replicas):
            replica.order = self
            replica.position = position
            self.ends[replica.in_flight] = position + 1
        for load in range(1, highest + 1):
            self.ends[load] = max(self.ends[load], self.ends[load - 1])

    def raise_load(self, replica: Replica) -> None:
        """Count one more request in flight at a member."""
        load = replica.in_flight
        ends = self.ends
        last = ends[load] - 1
        position = replica.position
        if position != last:
            replicas = self.replicas
            other = replicas[last]
            replicas[position] = other
            other.position = position
            replicas[last] = replica
            replica.position = last
        ends[load] = last
        load += 1
        replica.in_flight = load
        if len(ends) == load:
            ends.append(last + 1)
        self.total += 1

    def lower_load(self, replica: Replica) -> None:
        """Count one request fewer in flight at a member that has some."""
        load = replica.in_flight - 1
        ends = self.ends
        first = ends[load]
        position = replica.position
        if position != first:
            replicas = self.replicas
            other = replicas[first]
            replicas[position] = other
            other.position = position
            replicas[first] = replica
            replica.position = first
        ends[load] = first + 1
        replica.in_flight = load
        self.total -= 1

    def least(self) -> list[Replica]:
        """Return the (at most 8) least loaded, best first; equals take turns. Needs at least one member.

        The turn runs over one place fewer than there are equals: the chosen one is swapped to their end when its
        load rises, and returns to that place when it falls, so that an idle fleet is used in strict rotation.
        """
        replicas = self.replicas
        equals = self.ends[replicas[0].in_flight]
        if equals == 1:
            return replicas[:CANDIDATES]
        self._turn = turn = (self._turn + 1) % (equals - 1)
        if turn + CANDIDATES <= equals:
            return replicas[turn : turn + CANDIDATES]
        if equals >= CANDIDATES:
            return replicas[turn:equals] + replicas[: CANDIDATES + turn - equals]
        window = replicas[:CANDIDATES]
        window[0], window[turn] = window[turn], window[0]
        return window
