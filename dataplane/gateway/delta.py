"""PURE: what must be told to a running HAProxy so that it does what its new files say.

Servers, weights and map entries change through the Runtime API, which touches no stream. All else takes a reload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.gateway.pools import Backend, Server

#: Files whose entries can be changed one by one.
MAPS = ("models.map", "pins.map", "keys.map", "priorities.map")
#: More steps than this take longer than a reload, and a reload is one step.
MAX_STEPS = 2_048


@dataclass(frozen=True, slots=True)
class Reload:
    """The change takes new worker processes; ``reason`` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the Runtime API and what it answers when it succeeded.

    ``patient``: it is refused while connections are still attached, and is tried again for a while.
    """

    command: str
    answer: str = ""
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """The files of one order and the backends in them."""

    files: Mapping[str, str]
    backends: tuple[Backend, ...]


def structure(rendered: Rendered) -> dict[str, str]:
    """Return the files without what the Runtime API can change."""
    kept = {name: text for name, text in rendered.files.items() if name not in MAPS}
    lines = kept["haproxy.cfg"].splitlines()
    known = tuple(f"  server {server.name} " for backend in rendered.backends for server in backend.servers)
    kept["haproxy.cfg"] = "\n".join(line for line in lines if not (known and line.startswith(known)))
    return kept


def plan(old: Rendered, new: Rendered) -> tuple[Step, ...] | Reload:
    """Return the steps from ``old`` to ``new``, in order, or why they cannot be taken."""
    before, after = structure(old), structure(new)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        return Reload("changed: " + ", ".join(changed[:5]))
    added: list[Step] = []
    removed: list[Step] = []
    was = {backend.name: {server.name: server for server in backend.servers} for backend in old.backends}
    for backend in new.backends:
        servers = was[backend.name]
        for server in backend.servers:
            known = servers.pop(server.name, None)
            if known is None and not server.resolved:
                return Reload(f"the address of {server.name} must be resolved")
            if known is not None and (known.address, known.max_connections) != (server.address, server.max_connections):
                return Reload(f"{server.name} has another address or limit")
            added += _add(backend, server) if known is None else _change(backend, known, server)
        for gone in servers.values():
            removed += remove(backend.name, gone.name)
    steps = (*_map_additions(old.files, new.files), *added, *removed, *_map_removals(old.files, new.files))
    return steps if len(steps) <= MAX_STEPS else Reload(f"{len(steps)} steps")


def remove(pool: str, server: str) -> list[Step]:
    """Return the steps that take a server away for good."""
    return [
        maintenance(pool, server),
        Step(f"del server {pool}/{server}", "Server deleted.", patient=True),
    ]


def maintenance(pool: str, server: str) -> Step:
    """Return the step that takes a server out of service at once; streams that run on it go on."""
    return Step(f"set server {pool}/{server} state maint")


def _add(backend: Backend, server: Server) -> list[Step]:
    limit = f" maxconn {server.max_connections}" if server.max_connections else ""
    where = f"{backend.name}/{server.name}"
    options = f"{backend.server_options} weight {server.weight}{limit}"
    steps = [Step(f"add server {where} {server.address} {options}", "New server registered.")]
    if server.disabled:
        return steps  # a new server is in maintenance
    return [*steps, Step(f"enable health {where}"), Step(f"set server {where} state ready")]


def _change(backend: Backend, known: Server, server: Server) -> list[Step]:
    where = f"{backend.name}/{server.name}"
    steps = []
    if known.weight != server.weight:
        steps.append(Step(f"set server {where} weight {server.weight}"))
    if known.disabled != server.disabled:
        steps.append(Step(f"set server {where} state {'maint' if server.disabled else 'ready'}"))
    return steps


def _entries(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines())


def _map_additions(old: Mapping[str, str], new: Mapping[str, str]) -> list[Step]:
    steps = []
    for name in MAPS:
        before, after = _entries(old.get(name, "")), _entries(new[name])
        for key, value in after.items():
            if key not in before:
                steps.append(Step(f"add map {name} {key} {value}"))
            elif before[key] != value:
                steps.append(Step(f"set map {name} {key} {value}"))
    return steps


def _map_removals(old: Mapping[str, str], new: Mapping[str, str]) -> list[Step]:
    return [
        Step(f"del map {name} {key}")
        for name in MAPS
        for key in sorted(_entries(old.get(name, "")).keys() - _entries(new[name]).keys())
    ]
