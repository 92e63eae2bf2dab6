"""PURE: the table of settings that stands before the Lua sources."""

from __future__ import annotations

import json

from dataplane.errors import EDGE_ERRORS
from dataplane.gateway.limits import buffer_bytes, surely_whole_bytes
from dataplane.gateway.pools import fallback_pool, names_of
from dataplane.gateway.session_keys import HEADER_KEYS, checked_keys, union
from dataplane.pb import gateway_pb2, topology_pb2

#: A model's age is not known; a time that changed with each topology would make each one a reload.
CREATED = 0


def quoted(text: str) -> str:
    """Return a Lua string literal of ``text``: printable ASCII stands for itself, every other byte is an escape."""
    safe = (chr(b) if 32 <= b < 127 and b not in b"\"\\'" else f"\\x{b:02x}" for b in text.encode())
    return '"' + "".join(safe) + '"'


def model_items(topology: topology_pb2.Topology) -> dict[str, dict[str, object]]:
    """Return each model and adapter in OpenAI's shape, by name."""
    items: dict[str, dict[str, object]] = {}
    for model in topology.models:
        base, *adapters = names_of(model)
        shape = {"object": "model", "created": CREATED, "owned_by": "slipstream"}
        items[base] = {"id": base, **shape, "root": base, "parent": None}
        for name in adapters:
            items[name] = {"id": name, **shape, "root": name, "parent": base}
    return items


def models_json(topology: topology_pb2.Topology) -> str:
    """Return the answer to GET /v1/models."""
    return _json({"object": "list", "data": list(model_items(topology).values())})


def settings(order: gateway_pb2.GatewayOrder) -> str:
    """Return ``local SETTINGS = {...}`` for the Lua sources. Raises InvalidGateway for an unknown session key."""
    topology, gateway = order.topology, order.gateway
    errors = {
        code: f"{{status={error.status}, body={quoted(error.body().decode())}}}" for code, error in EDGE_ERRORS.items()
    }
    items = {name: quoted(_json(item)) for name, item in model_items(topology).items()}
    only = fallback_pool(topology.models[0]) if len(topology.models) == 1 else None
    return (
        "local SETTINGS = {\n"
        f"  surely_whole = {surely_whole_bytes(buffer_bytes(gateway, topology))},\n"
        f"  max_body_bytes = {gateway.max_body_bytes},\n"
        f"  only_pool = {quoted(only) if only else 'nil'},\n"
        f"  session_keys = {_table(_session_keys(topology))},\n"
        f"  errors = {_table(errors)},\n"
        f"  models = {_table(items)},\n"
        f"  model_list = {quoted(models_json(topology))},\n"
        "}\n"
    )


def _session_keys(topology: topology_pb2.Topology) -> dict[str, str]:
    """Return name -> Lua list of its keys; "" stands for a model that is not known. Empty when nobody uses one."""
    every = union(topology)
    if not every:
        return {}
    tables = {name: _key_list(checked_keys(model)) for model in topology.models for name in names_of(model)}
    return {**tables, "": _key_list(every)}


def _key_list(keys: list[str]) -> str:
    if not keys:
        return "false"
    parts = (f"{{name={quoted(key)}, header={'true' if key in HEADER_KEYS else 'false'}}}" for key in keys)
    return "{" + ", ".join(parts) + "}"


def _table(entries: dict[str, str]) -> str:
    return "{" + ", ".join(f"[{quoted(key)}] = {value}" for key, value in entries.items()) + "}"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
