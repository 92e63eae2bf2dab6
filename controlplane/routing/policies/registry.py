"""All policies by name, and the check of a model's routing settings."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.policies.base import Parameter, Policy, complete
from controlplane.routing.policies.cache_aware import CacheAware
from controlplane.routing.policies.cost import Cost
from controlplane.routing.policies.kv_overlap import KvOverlap
from controlplane.routing.policies.least_loaded import LeastLoaded
from controlplane.routing.policies.power_of_two import PowerOfTwo
from controlplane.routing.policies.prefix import Prefix
from controlplane.routing.policies.prefix_tree import PrefixTree
from controlplane.routing.policies.round_robin import RoundRobin
from controlplane.routing.policies.session import Session
from controlplane.routing.policies.sticky_until_saturated import StickyUntilSaturated
from controlplane.routing.policies.weighted_blend import WeightedBlend

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Cost,
        RoundRobin,
        LeastLoaded,
        PowerOfTwo,
        Session,
        Prefix,
        CacheAware,
        StickyUntilSaturated,
        KvOverlap,
        PrefixTree,
        WeightedBlend,
    )
}
#: For a model that names none.
DEFAULT_POLICY = "cost"


def parameters(policy: str) -> dict[str, Parameter]:
    """Return what can be set for a policy. Raises UnknownPolicy."""
    found = POLICIES.get(policy)
    if found is None:
        raise UnknownPolicy(f"unknown policy {policy!r}; there are {', '.join(sorted(POLICIES))}")
    return dict(found.parameters)


def checked(policy: str, given: Mapping[str, float]) -> dict[str, float]:
    """Return a value for each parameter of a policy. Raises UnknownPolicy for anything that is not allowed."""
    return complete(parameters(policy), given)


def make(policy: str, given: Mapping[str, float], seed: int) -> Policy:
    """Return a new instance. Raises UnknownPolicy."""
    values = checked(policy, given)
    return POLICIES[policy](values, seed)
