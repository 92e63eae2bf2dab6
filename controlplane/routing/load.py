"""What is known of one replica: how busy it is, how fast, and what it is taken to cache."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from controlplane.routing.events import Telemetry
from controlplane.routing.fleet import ReplicaInfo
from controlplane.routing.rates import Hints, Rates
from dataplane.names import host_port

if TYPE_CHECKING:
    from controlplane.routing.flight import Flight
    from controlplane.routing.load_order import LoadOrder
    from controlplane.routing.prefix_index import Node
    from controlplane.routing.view import View

#: Candidates that a decision weighs and a receipt keeps.
CANDIDATES = 8
#: Blocks of 4,096 bytes that a replica is taken to cache when it does not tell its KV size: 512 Ki tokens.
DEFAULT_CACHE_BLOCKS = 512
#: Bytes of prompt text behind one token, and bytes in one block of the feature record.
BYTES_PER_TOKEN = 4
BLOCK_BYTES = 4096

#: A replica's signals as a receipt keeps them: serial; requests in flight; of these, without a first byte; their
#: uncached prompt tokens; tokens of context of all in flight; believed prefill tokens/s; first byte in ms; part of the
#: KV cache in use; when these two were heard, in hundredths of a second modulo 2**32.
SIGNALS = Struct("<IIIIIfffII")
#: A first byte's time, or a KV cache's use, that was never heard.
NOT_HEARD = -1.0
#: Of engines that nobody described: a mid-size model on one data-center GPU. Rates are learned from the first reports
#: on; being off by two at the start moves no simulated mean by more than 3 % (docs/routing.md).
DEFAULT_HINTS = Hints(
    prefill_tokens_per_s=20_000.0, attention_tokens=32_000.0, step_s=0.008, sequence_s=20e-6, context_s=50e-9
)
#: Tokens of cache that reports must have told of before a prediction's failures weigh fully.
TRUST_TOKENS = 32_768
#: Share that an older report keeps when a newer one comes.
TRUST_DECAY = 0.98
#: Beyond this the counts of a receipt are cut.
_U32 = 0xFFFFFFFF


def centiseconds(now_s: float) -> int:
    """Return a time as receipts keep it."""
    return int(now_s * 100.0) & _U32


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What to do with one request.

    ``outcome`` is ``go``, ``more`` (send the body), ``wait``, ``error`` or ``shed``. ``pool`` and ``server`` are the
    bytes for the wire, empty unless ``go``; ``error`` is a code of ``dataplane/errors.py``, empty unless ``error``.
    Equal decisions about one server are one object between two topologies, and compare by identity.
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
    ``waiting`` of them have no first byte yet, ``queued_tokens`` are their uncached prompt tokens, and ``queued_work``
    the same as short prompts' tokens that would take as long;
    ``context_tokens`` are prompt and expected output of all that were decided here, ``kv_tokens`` the same less what
    was taken to be cached already. ``answers`` tells that its middleware reports first bytes, ``tells`` that its
    engine reports prefill times. ``chosen`` numbers the last decision for it.
    """

    __slots__ = (
        "adapters",
        "answers",
        "base",
        "cache_blocks",
        "cache_nodes",
        "chosen",
        "context_tokens",
        "decision",
        "decisions",
        "drag_s",
        "excess",
        "first_byte_at_s",
        "first_byte_ms",
        "head_since_s",
        "head_work",
        "held_blocks",
        "held_nodes",
        "in_flight",
        "info",
        "kv_capacity_tokens",
        "kv_tokens",
        "leaves",
        "order",
        "position",
        "predicted_cached",
        "queue",
        "queue_s",
        "queued_tokens",
        "queued_work",
        "rates",
        "reported_cached",
        "serial",
        "server",
        "signals",
        "telemetry",
        "telemetry_at_s",
        "tells",
        "token_s",
        "told_capacity_tokens",
        "trust",
        "waiting",
    )

    def __init__(self, info: ReplicaInfo, serial: int) -> None:
        self.serial = serial
        self.in_flight = 0
        self.waiting = 0
        self.queued_tokens = 0
        self.queued_work = 0
        #: The waiting ones, oldest first: engines prefill in this order. The first one's prefill goes on since then.
        self.queue: dict[Flight, None] = {}
        self.head_work = 0
        self.head_since_s = 0.0
        self.context_tokens = 0
        self.kv_tokens = 0
        self.told_capacity_tokens = 0
        self.base = 0
        self.answers = False
        self.tells = False
        self.chosen = 0
        self.rates = Rates(DEFAULT_HINTS)
        self.telemetry: Telemetry | None = None
        self.telemetry_at_s = 0.0
        self.predicted_cached = 0.0
        self.reported_cached = 0.0
        #: Part of a predicted hit that is believed.
        self.trust = 1.0
        self.excess: int | None = None
        self.decisions = 0
        self.first_byte_ms = NOT_HEARD
        self.first_byte_at_s = 0.0
        self.order: LoadOrder | None = None
        self.position = 0
        self.adapters: dict[View, None] = {}
        #: Ends of the prompts that it caches, least recently used first, with the bytes of each prompt (0: not known).
        self.leaves: OrderedDict[Node, int] = OrderedDict()
        self.held_blocks = 0
        self.held_nodes = 0
        self.cache_nodes = 1
        self.describe(info)
        self.sign()

    def describe(self, info: ReplicaInfo) -> None:
        """Take what a new topology says of the same incarnation."""
        self.info = info
        self.server = info.server.encode()
        self.size()
        self.decision = Decision(
            outcome="go",
            pool=info.pool.encode(),
            server=self.server,
            pool_name=info.pool,
            server_name=info.server,
            address=host_port(info.host, info.port),
        )

    def size(self) -> None:
        """Take the size of the KV cache: what the engine tells, else the topology, else a usual one for the tree."""
        self.kv_capacity_tokens = self.told_capacity_tokens or self.info.kv_capacity_tokens
        blocks = self.kv_capacity_tokens * BYTES_PER_TOKEN // BLOCK_BYTES
        self.cache_blocks = max(1, blocks) if self.kv_capacity_tokens else DEFAULT_CACHE_BLOCKS

    def sign(self) -> None:
        """Pack the signals again; every change of one is followed by this, so that a receipt only joins bytes.

        With them go what every decision would work out from them: ``token_s`` (seconds for one token of prefill),
        ``queue_s`` (for all that is queued) and ``drag_s`` (by which the streams here lengthen each decode step).
        """
        rates = self.rates
        self.token_s = token_s = 1.0 / rates.prefill_tokens_per_s
        self.queue_s = self.queued_work * token_s
        hints = rates.hints
        self.drag_s = rates.decode_factor * (hints.sequence_s * self.in_flight + hints.context_s * self.context_tokens)
        telemetry = self.telemetry
        self.signals = SIGNALS.pack(
            self.serial,
            self.in_flight,
            self.waiting,
            self.queued_tokens & _U32,
            self.context_tokens & _U32,
            rates.prefill_tokens_per_s,
            self.first_byte_ms,
            NOT_HEARD if telemetry is None else telemetry.kv_use,
            int(self.first_byte_at_s * 100.0) & _U32,
            int(self.telemetry_at_s * 100.0) & _U32,
        )

    def begin(self) -> None:
        """Count one more request in flight."""
        order = self.order
        if order is None:
            self.in_flight += 1
        else:
            order.raise_load(self)
        self.sign()

    def end(self) -> None:
        """Count one request fewer in flight."""
        order = self.order
        if order is None:
            self.in_flight -= 1
        else:
            order.lower_load(self)
        self.sign()

    def left_s(self, now_s: float) -> float:
        """Return the seconds that the queued prefill still takes: what the first one has had is over."""
        done_s = min(max(now_s - self.head_since_s, 0.0), self.head_work * self.token_s)
        return self.queue_s - done_s

    def wait_s(self, work: int) -> float:
        """Return the seconds until a request with so much prefill work would have its first byte."""
        rates = self.rates
        return (self.queued_work + work) / rates.prefill_tokens_per_s + rates.step_s(
            self.in_flight, self.context_tokens
        )

    def compare_cached(self, predicted: int, reported: int) -> None:
        """Take how many prompt tokens the engine really found in its cache, and believe predictions accordingly.

        More than predicted is as good as right: other gateways and the engine's own past are not in the prediction.
        """
        self.predicted_cached = self.predicted_cached * TRUST_DECAY + predicted
        self.reported_cached = self.reported_cached * TRUST_DECAY + min(predicted, reported)
        self.trust = (self.reported_cached + TRUST_TOKENS) / (self.predicted_cached + TRUST_TOKENS)
