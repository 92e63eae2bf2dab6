"""Who is compared: every registered policy with its own defaults, the peers tuned as well, and the bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.routing.policies.registry import POLICIES, checked
from controlplane.simulation.study import BOUNDS

#: Ours, which is measured against all the others.
SUBJECT = "cost"
#: Slipstream's own besides ``cost``: shown, and no peer.
OWN = frozenset({SUBJECT, "prefix"})

#: Peers with other parameters than the published ones: policy -> name of the variant -> what is set. Found by trying a
#: few on the fitted points, except cache_aware's `library`: the defaults of its libraries, not of their command lines.
TUNED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "cache_aware": {
        "library": {"cache_threshold": 0.5, "balance_abs_threshold": 32, "balance_rel_threshold": 1.1},
        "tuned": {"balance_abs_threshold": 4},
    },
    "sticky_until_saturated": {"tuned": {"max_ttft_penalty_ms": 1_000}},
    "kv_overlap": {"tuned": {"prefill_load_scale": 8}},
    "prefix_tree": {"tuned": {"imbalanced_threshold": 10}},
    "session": {"unbounded": {"load_factor": 1_000}},
}


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy or a bound; ``variant`` names parameters that are not its defaults."""

    policy: str
    variant: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in reports: the policy, and the variant."""
        return f"{self.policy}/{self.variant}" if self.variant else self.policy

    @property
    def bound(self) -> bool:
        """Whether it sees what no router can."""
        return self.policy in BOUNDS

    @property
    def peer(self) -> bool:
        """Whether it is another router's way."""
        return not self.bound and self.policy not in OWN

    @property
    def published(self) -> bool:
        """Whether it is a peer with its published defaults."""
        return self.peer and not self.variant


def contenders(names: tuple[str, ...] = ()) -> tuple[Contender, ...]:
    """Return those of the policies in ``names``, all without any. Raises UnknownPolicy for parameters that do not fit.

    The oracle is always among them.
    """
    chosen = [Contender(name) for name in POLICIES if not names or name in names]
    for policy, variants in TUNED.items():
        if policy in POLICIES and (not names or policy in names):
            for variant, parameters in variants.items():
                checked(policy, parameters)
                chosen.append(Contender(policy, variant, parameters))
    return (*chosen, *(Contender(name) for name in BOUNDS if name == "oracle" or not names or name in names))
