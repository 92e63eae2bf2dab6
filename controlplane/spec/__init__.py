"""Desired state: what a cluster's YAML or Python builder may say, validated."""

from controlplane.spec.canonical import json_schema, to_json, to_yaml
from controlplane.spec.loading import from_json, from_yaml, load
from controlplane.spec.model import (
    AdapterSpec,
    AdminSpec,
    ApiKeySpec,
    ApiKeysSpec,
    Cluster,
    ExternalEngineSpec,
    GatewaySpec,
    LimitsSpec,
    ListenSpec,
    ModelSpec,
    NodeSpec,
    PoolSpec,
    RoutingSpec,
    SimulatedEngineSpec,
    VllmEngineSpec,
)

__all__ = [
    "AdapterSpec",
    "AdminSpec",
    "ApiKeySpec",
    "ApiKeysSpec",
    "Cluster",
    "ExternalEngineSpec",
    "GatewaySpec",
    "LimitsSpec",
    "ListenSpec",
    "ModelSpec",
    "NodeSpec",
    "PoolSpec",
    "RoutingSpec",
    "SimulatedEngineSpec",
    "VllmEngineSpec",
    "from_json",
    "from_yaml",
    "json_schema",
    "load",
    "to_json",
    "to_yaml",
]
