"""PURE: what tells that requests belong to one session."""

from __future__ import annotations

from dataplane.gateway.site import InvalidGateway
from dataplane.pb import topology_pb2

#: Session keys that are headers, and those that are members of the body.
HEADER_KEYS = frozenset({"x-session-id", "x-correlation-id"})
BODY_KEYS = frozenset({"user", "prompt_cache_key"})


def checked_keys(model: topology_pb2.Model) -> list[str]:
    """Return the model's session keys, in its order. Raises InvalidGateway for an unknown one."""
    keys = list(model.routing.session_keys)
    for key in keys:
        if key not in HEADER_KEYS and key not in BODY_KEYS:
            raise InvalidGateway(f"{key[:80]!r} cannot be a session key")
    return keys


def union(topology: topology_pb2.Topology) -> list[str]:
    """Return every model's keys, each once, in the order in which they are named first."""
    return list(dict.fromkeys(key for model in topology.models for key in checked_keys(model)))


def headers(topology: topology_pb2.Topology) -> list[str]:
    """Return those of ``union`` that are headers."""
    return [key for key in union(topology) if key in HEADER_KEYS]
