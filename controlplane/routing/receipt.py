"""One decision's record, as people read it, and the words that packed receipts share."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.routing.policies.base import ScoreKind

#: Words (servers, labels) kept for receipts; each is far below 1 KB.
MAX_WORDS = 16_384
#: The number that no word has.
NO_WORD = 0


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that is known of a candidate; ``age_ms`` is -1 for what does not age."""

    name: str
    value: float
    age_ms: float = -1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that was weighed; a lower score is better."""

    server: str
    signals: tuple[Signal, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Completed:
    """How the request ended; ``server`` is the one that really answered (empty: none)."""

    server: str
    status: int
    first_byte_ms: int
    total_ms: int
    bytes: int
    termination: str
    retries: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """The full record of one decision.

    ``decided_s`` is in seconds since 1970; ``margin`` is the runner-up's score less the winner's (0 without one);
    ``completion`` is None until HAProxy tells how the request ended.
    """

    number: int
    request_id: bytes
    decided_s: float
    kind: str
    model: str
    adapter: str
    outcome: str
    error_code: str
    pool: str
    server: str
    policy: str
    policy_number: int
    topology_number: int
    candidates: tuple[Candidate, ...]
    rejected: dict[str, int]
    eligible: int
    runner_up: str
    margin: float
    prompt_bytes: int
    prefix_blocks: int
    reason: str
    completion: Completed | None
    waited_ms: int = 0


@dataclass(frozen=True, slots=True)
class Label:
    """What the receipts of one model or adapter share while a topology's relevant part stays the same."""

    model: str = ""
    adapter: str = ""
    policy: str = ""
    policy_number: int = 0
    score_kind: ScoreKind = ScoreKind.WRITTEN
    reads_prefixes: bool = False
    terms: tuple[str, ...] = ()
    rejected: tuple[tuple[str, int], ...] = ()
    eligible: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Receipts after a number, oldest first; ``last`` is the number to ask with next; ``skipped`` were left out."""

    receipts: tuple[Receipt, ...]
    last: int
    skipped: int


class Words:
    """Numbers servers and labels, so that receipts hold 4 bytes for each; the oldest leave beyond MAX_WORDS."""

    def __init__(self) -> None:
        self._next = NO_WORD + 1
        self._servers: dict[int, tuple[str, str]] = {}
        self._labels: dict[int, Label] = {}
        self._numbers: dict[Label, int] = {}

    def server(self, server: str, pool: str) -> int:
        """Return a new serial for a server."""
        serial = self._take()
        self._servers[serial] = (server, pool)
        if len(self._servers) > MAX_WORDS:
            del self._servers[next(iter(self._servers))]
        return serial

    def label(self, label: Label) -> int:
        """Return the number of a label; equal labels have one, and using one keeps it."""
        number = self._numbers.pop(label, 0) or self._take()
        self._numbers[label] = number
        self._labels[number] = label
        if len(self._numbers) > MAX_WORDS:
            oldest = next(iter(self._numbers))
            del self._labels[self._numbers.pop(oldest)]
        return number

    def server_of(self, serial: int) -> tuple[str, str]:
        """Return (server, pool); empty when the serial is gone."""
        return self._servers.get(serial, ("", ""))

    def label_of(self, number: int) -> Label:
        """Return the label; an empty one when it is gone."""
        return self._labels.get(number, Label())

    def _take(self) -> int:
        taken = self._next
        self._next += 1
        return taken
