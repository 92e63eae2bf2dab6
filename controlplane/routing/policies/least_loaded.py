"""least_loaded: the replica with the fewest requests in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar

from controlplane.routing.load import CANDIDATES, Replica
from controlplane.routing.policies.base import LEAST_IN_FLIGHT, Choice, Parameter, Reason, ScoreKind
from controlplane.routing.record import Request
from controlplane.routing.view import View

#: Replicas with the adapter resident that a decision looks at, besides the least loaded.
RESIDENTS_WEIGHED = 8

ADAPTER_PENALTY = Parameter(
    2.0,
    0.0,
    1000.0,
    "Requests in flight that loading a LoRA adapter counts as. 2 keeps an adapter where it is among near equals "
    "and lets it spread as soon as a replica is clearly busier; the engine loads an adapter in tens of milliseconds.",
)


def residents_of(view: View) -> list[Replica]:
    """Return some replicas (at most 8) that may be chosen and served the view's adapter recently."""
    order = view.order
    return [replica for replica in islice(view.residents, RESIDENTS_WEIGHED) if replica.order is order]


class LeastLoaded:
    """Fewest requests in flight; equals take turns.

    Reads: the router's own count of requests in flight, and which adapters a replica served recently.
    Score: requests in flight, plus ``adapter_penalty`` where the request's adapter is not resident.
    Limits: a request counts as one whatever its length; of many residents it looks at 8 and the 8 least loaded.
    """

    name: ClassVar[str] = "least_loaded"
    parameters: ClassVar[Mapping[str, Parameter]] = {"adapter_penalty": ADAPTER_PENALTY}
    score_kind: ClassVar[ScoreKind] = ScoreKind.IN_FLIGHT
    terms: ClassVar[tuple[str, ...]] = ()
    reads_prefixes: ClassVar[bool] = False

    def __init__(self, values: Mapping[str, float], seed: int) -> None:
        self._adapter_penalty = values["adapter_penalty"]

    def refresh(self, members: Sequence[Replica], names: Sequence[str]) -> None:
        """Nothing is kept."""

    def choose(self, view: View, request: Request, now_s: float) -> Choice:
        """See the class."""
        if not view.adapter:
            return view.order.least(), None, None, LEAST_IN_FLIGHT, 0, None
        return least_with_adapter(view, self._adapter_penalty)


def least_with_adapter(view: View, penalty: float) -> Choice:
    """Choose the least loaded, where a replica without the view's adapter counts as ``penalty`` requests busier."""
    residents = view.residents
    weighed = dict.fromkeys(view.order.least())
    weighed.update(dict.fromkeys(residents_of(view)))
    scored = [(r.in_flight + (0.0 if r in residents else penalty), turn, r) for turn, r in enumerate(weighed)]
    scored.sort()
    del scored[CANDIDATES:]
    winner = scored[0][2]
    reason = Reason.ADAPTER_RESIDENT if winner in residents else LEAST_IN_FLIGHT
    return [entry[2] for entry in scored], [entry[0] for entry in scored], None, reason, 0, None
