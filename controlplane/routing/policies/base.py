"""The contract of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol, TypeAlias

from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.load import Replica
from controlplane.routing.record import Request
from controlplane.routing.view import View


class Reason(IntEnum):
    """The word for why a decision came out as it did; ``Reason.X.name.lower()`` is what people read."""

    LEAST_IN_FLIGHT = 0
    NEXT_IN_TURN = 1
    FEWER_OF_TWO = 2
    ONLY_REPLICA = 3
    ADAPTER_RESIDENT = 4
    SESSION = 5
    SESSION_OVER_BOUND = 6
    NO_SESSION = 7
    LONGEST_PREFIX = 8
    PREFIX_OUTWEIGHED = 9
    NO_PREFIX = 10
    PINNED = 11
    BODY_NEEDED = 12
    REFUSED = 13
    LOWEST_COST = 14
    LOWEST_COST_WITH_CACHE = 15
    SHED_TENANT_REQUESTS = 16
    SHED_TENANT_TOKENS = 17
    SHED_QUEUE_REQUESTS = 18
    SHED_QUEUE_TOKENS = 19
    SHED_DISPLACED = 20
    SHED_TIMEOUT = 21
    SHED_ROUTER_FULL = 22


# Plain numbers of the reasons that decisions name all day: an enum's member costs more to look up than to use.
LEAST_IN_FLIGHT = Reason.LEAST_IN_FLIGHT.value
NEXT_IN_TURN = Reason.NEXT_IN_TURN.value
FEWER_OF_TWO = Reason.FEWER_OF_TWO.value
SESSION = Reason.SESSION.value
LONGEST_PREFIX = Reason.LONGEST_PREFIX.value
NO_PREFIX = Reason.NO_PREFIX.value


class ScoreKind(IntEnum):
    """How a receipt reads the scores of a choice that did not write them out."""

    WRITTEN = 0
    IN_FLIGHT = 1
    RANK = 2


@dataclass(frozen=True, slots=True)
class Parameter:
    """A policy's setting: its default, the range that is allowed, and what it means, with the source of the default."""

    default: float
    minimum: float
    maximum: float
    doc: str


#: Terms of a score that a receipt keeps.
MAX_TERMS = 4
#: (candidates, at most 8, the winner first; scores, lower is better, or None for the policy's ``score_kind``; prefix
#: blocks held by each, or None; the Reason's number; replicas left out because they were over the load bound; the
#: terms of each candidate's score, one after the other in the order of ``Policy.terms``, or None).
Choice: TypeAlias = tuple[list[Replica], Sequence[float] | None, Sequence[int] | None, int, int, Sequence[float] | None]


class Policy(Protocol):
    """Chooses among the replicas of one view. Same state and same request give the same choice.

    One instance serves one model and all of its adapters. It may read the view, the request and the replicas'
    signals; it must not change them. Nothing in ``choose`` may cost more with more replicas.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]]
    score_kind: ClassVar[ScoreKind]
    #: Names of the (at most 4) terms that a score is the sum of; empty: they are not kept.
    terms: ClassVar[tuple[str, ...]]
    #: Whether receipts show how much of the prompt each candidate holds.
    reads_prefixes: ClassVar[bool]

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        """``values`` are checked and complete (see ``registry.checked``); ``seed`` is any integer."""

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Take a new topology: the replicas that may be chosen, and the names of all in the same pools, both sorted."""

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """Choose; ``view.order`` has at least one replica. A signal's age is ``now_s`` less its time."""


def complete(parameters: Mapping[str, Parameter], given: Mapping[str, float]) -> dict[str, float]:
    """Return a value for each parameter. Raises UnknownPolicy for an unknown name or a value out of range."""
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise UnknownPolicy(f"unknown parameter {unknown[0]!r}; there are {', '.join(sorted(parameters)) or 'none'}")
    values = {name: float(given.get(name, parameter.default)) for name, parameter in parameters.items()}
    for name, value in values.items():
        parameter = parameters[name]
        if not parameter.minimum <= value <= parameter.maximum:  # also false for NaN
            raise UnknownPolicy(f"{name} is {value:g}; it must be {parameter.minimum:g} to {parameter.maximum:g}")
    return values
