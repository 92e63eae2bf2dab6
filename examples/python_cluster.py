"""A cluster in Python: the objects of the YAML, for when a loop says it better.

    slipstream up examples.python_cluster:cluster
    slipstream render examples.python_cluster:cluster --out rendered

``module:attribute`` names a Cluster, or a function without arguments that returns one; the working directory is looked
in. Objects check themselves as they are made, so a mistake shows file and line of this module.
"""

from controlplane.spec import (
    AdapterSpec,
    Cluster,
    GatewaySpec,
    ListenSpec,
    ModelSpec,
    PoolSpec,
    RoutingSpec,
    SimulatedEngineSpec,
)

#: Model, replicas, milliseconds of an engine step.
SIZES = (("small", 3, 4.0), ("large", 2, 20.0))


def model(name: str, replicas: int, step_base_ms: float) -> ModelSpec:
    """Return a model with one adapter and one pool."""
    return ModelSpec(
        name=name,
        adapters=(AdapterSpec(name=f"{name}-sql"),),
        routing=RoutingSpec(policy="prefix"),
        pools=(PoolSpec(name=name, replicas=replicas, engine=SimulatedEngineSpec(step_base_ms=step_base_ms)),),
    )


cluster = Cluster(
    cluster="from-python",
    gateway=GatewaySpec(listen=(ListenSpec(address="127.0.0.1:8000"),)),
    models=tuple(model(*size) for size in SIZES),
)
