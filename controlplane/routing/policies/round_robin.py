"""round_robin: each replica in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from controlplane.routing.load import CANDIDATES, Replica
from controlplane.routing.policies.base import NEXT_IN_TURN, Choice, Parameter, ScoreKind
from controlplane.routing.record import Request
from controlplane.routing.view import View


class RoundRobin:
    """Each replica in turn, by name.

    Reads: nothing but who may be chosen; one turn is shared by a model and its adapters.
    Score: how many requests until its turn.
    Limits: blind to load and caches; a new topology continues at the same place of the new list.
    """

    name: ClassVar[str] = "round_robin"
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    score_kind: ClassVar[ScoreKind] = ScoreKind.RANK
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = False

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._turn = -1
        self._members: list[Replica] = []
        self._count = 0

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Take the list to go round."""
        self._count = len(members)
        self._members = [*members, *members[:CANDIDATES]]  # so that a window never has to wrap

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        self._turn = turn = (self._turn + 1) % self._count
        window = self._members[turn : turn + CANDIDATES] if self._count >= CANDIDATES else self._wrapped(turn)
        return window, None, None, NEXT_IN_TURN, 0, None

    def _wrapped(self, turn: int) -> list[Replica]:
        return self._members[turn : turn + self._count]
