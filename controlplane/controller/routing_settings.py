"""Checks what a spec says of routing against what its policies document."""

from __future__ import annotations

from controlplane.errors import InvalidSpec
from controlplane.routing.errors import UnknownPolicy
from controlplane.routing.policies import registry
from controlplane.spec.model import Cluster


def check_routing(cluster: Cluster) -> None:
    """Raise InvalidSpec when a model names a parameter that its policy does not have, or a value out of its range."""
    for number, model in enumerate(cluster.models):
        try:
            registry.checked(model.routing.policy, model.routing.parameters)
        except UnknownPolicy as error:
            raise InvalidSpec(f"models[{number}].routing: {error}") from None
