"""power_of_two: the less loaded of two that are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from controlplane.routing.load import Replica
from controlplane.routing.policies.base import FEWER_OF_TWO, Choice, Parameter, Reason, ScoreKind
from controlplane.routing.policies.least_loaded import ADAPTER_PENALTY, least_with_adapter
from controlplane.routing.record import Request
from controlplane.routing.view import View

_U32 = 0xFFFFFFFF


class PowerOfTwo:
    """Two replicas are drawn; the one with fewer requests in flight wins (Mitzenmacher 2001), the first when equal.

    Reads: the router's own count of requests in flight; for an adapter, chooses as ``least_loaded`` does, since a
    blind draw would load the adapter everywhere.
    Score: requests in flight. A receipt shows the two that were drawn and no other.
    Limits: draws come from a 32-bit xorshift (Marsaglia 2003) that starts from the seed, so they repeat in a replay.
    """

    name: ClassVar[str] = "power_of_two"
    parameters: ClassVar[Mapping[str, Parameter]] = {"adapter_penalty": ADAPTER_PENALTY}
    score_kind: ClassVar[ScoreKind] = ScoreKind.IN_FLIGHT
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = False

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._adapter_penalty = values["adapter_penalty"]
        # Spread the seed's bits, and never start from 0, where xorshift stays.
        self._state = ((seed + 1) * 0x9E3779B1 & _U32) or 1

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Nothing is kept."""

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        if view.adapter:
            return least_with_adapter(view, self._adapter_penalty)
        replicas = view.order.replicas
        count = len(replicas)
        if count == 1:
            return replicas[:], None, None, Reason.ONLY_REPLICA.value, 0, None
        state = self._state
        state ^= state << 13 & _U32
        state ^= state >> 17
        state ^= state << 5 & _U32
        self._state = state
        draw, first = divmod(state, count)
        second = draw % (count - 1)
        if second >= first:
            second += 1
        one = replicas[first]
        other = replicas[second]
        pair = [one, other] if one.in_flight <= other.in_flight else [other, one]
        return pair, None, None, FEWER_OF_TWO, 0, None
