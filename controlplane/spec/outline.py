"""What the checks between a spec's parts look at: plain data, read without trust in its shape.

Whatever has the wrong shape is passed over (pydantic reports it), so that the checks also run on a spec that has other
errors: its operator sees all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.spec import fields

Place = tuple[str | int, ...]

#: Replicas of one pool.
MAX_REPLICAS = 4_096
#: Longest slug of a model in a pool's default name: with the longest role a label of 63 characters.
_SLUG_LENGTH = 55


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that a spec may not say; ``place`` is the path of keys and indexes to it."""

    place: Place
    message: str


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool, its defaults filled in. ``nodes`` are those that may run it."""

    place: Place
    name: str
    role: str
    replicas: int
    nodes: frozenset[str]
    listed_nodes: tuple[tuple[Place, str], ...]
    engine: dict[str, Any]
    precise: bool = False

    @property
    def kind(self) -> str:
        """The engine's kind; empty when it is not said."""
        return text(self.engine, "kind")


@dataclass(frozen=True, slots=True)
class Node:
    """One node; ``span`` is its first and last port, None when they cannot be read."""

    place: Place
    name: str
    address: str
    span: tuple[int, int] | None


def default_pool_name(model: str, role: str) -> str:
    """Return ``<slug of model>-<role>``, a label."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:_SLUG_LENGTH].strip("-")
    return f"{slug}-{role}"


def entries(holder: Any, key: str, place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the mappings in the list ``holder[key]``, each with its path."""
    for inner, entry in listed(holder, key, place):
        if isinstance(entry, dict):
            yield inner, entry


def listed(holder: Any, key: str, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield the entries of the list ``holder[key]``, each with its path."""
    found = holder.get(key) if isinstance(holder, dict) else None
    if isinstance(found, list | tuple):
        for index, entry in enumerate(found):
            yield (*place, key, index), entry


def text(entry: dict[str, Any], key: str, default: str = "") -> str:
    """Return the text at ``key``; empty when it is something else."""
    value = entry.get(key, default)
    return value if isinstance(value, str) else ""


def whole(entry: dict[str, Any], key: str, default: int) -> int:
    """Return the whole number at ``key``; 0 when it is something else."""
    value = entry.get(key, default)
    return value if type(value) is int else 0


def nodes(spec: dict[str, Any]) -> list[Node]:
    """Return the nodes; the default one when none are named."""
    found = list(entries(spec, "nodes")) if "nodes" in spec else [(("nodes", 0), {"name": "local"})]
    return [
        Node(
            place, text(entry, "name"), text(entry, "address", "127.0.0.1"), _span(text(entry, "ports", "21000-21999"))
        )
        for place, entry in found
    ]


def _span(ports: str) -> tuple[int, int] | None:
    try:
        return fields.split_ports(ports)
    except ValueError:
        return None


def pools(spec: dict[str, Any]) -> list[Pool]:
    """Return the pools of all models."""
    everywhere = frozenset(node.name for node in nodes(spec))
    return [
        _pool(place, entry, model, everywhere)
        for model_place, model in entries(spec, "models")
        for place, entry in entries(model, "pools", model_place)
    ]


def is_precise(model: dict[str, Any]) -> bool:
    """Return whether a model's prompts are matched with KV events."""
    routing = model.get("routing")
    return isinstance(routing, dict) and routing.get("precise") is True


def _pool(place: Place, entry: dict[str, Any], of: dict[str, Any], everywhere: frozenset[str]) -> Pool:
    model = text(of, "name")
    role = text(entry, "role", "mixed")
    engine, replicas = entry.get("engine"), whole(entry, "replicas", 1)
    named = tuple((inner, name) for inner, name in listed(entry, "nodes", place) if isinstance(name, str))
    return Pool(
        place=place,
        name=text(entry, "name") or (default_pool_name(model, role) if model and role else ""),
        role=role,
        replicas=replicas if 0 <= replicas <= MAX_REPLICAS else 0,
        nodes=frozenset(name for _, name in named) or everywhere,
        listed_nodes=named,
        engine=engine if isinstance(engine, dict) else {},
        precise=is_precise(of),
    )
