"""PURE: the cache salt that the gateway gives a tenant, for models whose tenants share no cached prompts.

A salt is a capability: who does not know it cannot address the prompts that were cached under it, whatever it sends
to an engine's port. Only gateways have the key, and a salt appears in no log, no receipt and no answer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from dataplane.names import LABEL, checked
from dataplane.pb import gateway_pb2, topology_pb2

#: Hex digits of a salt: 160 bits, and well below the 128 characters that vLLM takes.
SALT_DIGITS = 40


def salt(tenant: str, key: bytes) -> str:
    """Return a tenant's salt."""
    return hmac.new(key, b"cache salt\0" + tenant.encode(), hashlib.sha256).hexdigest()[:SALT_DIGITS]


def salt_map(topology: topology_pb2.Topology, keys: Iterable[gateway_pb2.ApiKey], key: bytes) -> dict[str, str]:
    """Return tenant -> salt; empty when no model isolates its tenants, or without a key."""
    if not key or not any(model.isolate_cache for model in topology.models):
        return {}
    return {tenant: salt(tenant, key) for tenant in {checked(LABEL, one.tenant, "tenant") for one in keys}}
