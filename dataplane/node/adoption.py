"""What is written down with an engine's process, and how it is known again after the agent's restart."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from dataplane.engines.command import EngineSite, command
from dataplane.launchers.base import ProcessSpec, RunningProcess
from dataplane.launchers.logs import tail
from dataplane.launchers.records import ProcessRecord
from dataplane.node import convert
from dataplane.node.decide import Life
from dataplane.node.incarnation import DEFAULT_STOP_GRACE_S, MAX_LOG_LINES, Incarnation
from dataplane.pb import node_pb2

_log = logging.getLogger(__name__)

#: The role of engines in process records (docs/contracts.md).
ROLE = "replica"


def process_spec(engine: Incarnation, order: node_pb2.EngineOrder, site: EngineSite) -> ProcessSpec:
    """Return the process of an order. Raises DataplaneError when no command line can be made of it."""
    made = command(order.launch, site)
    labels = {
        "server": engine.server,
        "generation": str(engine.generation),
        "port": str(order.launch.port),
        "host": order.launch.host,
        "stop_grace_s": f"{order.stop_grace_s:g}",
    }
    return ProcessSpec(engine.replica, ROLE, made.argv, made.env, labels)


def adopted(process: RunningProcess) -> Incarnation | None:
    """Return the incarnation that a living process is; None when its labels do not tell."""
    engine = _from_labels(process.name, process.labels)
    if engine is not None:
        engine.runs(process)
    return engine


def ended(records: Iterable[ProcessRecord]) -> list[Incarnation]:
    """Return those of engines that ended while no agent was there: their generation must not be started again."""
    found: list[Incarnation] = []
    for record in records:
        engine = _from_labels(record.name, record.labels) if record.role == ROLE else None
        if engine is not None:
            engine.ended(None, "ended while no agent was there")
            engine.record = record
            engine.started_unix_ms = record.started_unix_ms
            engine.last_log_lines = tail(Path(record.log), MAX_LOG_LINES)
            found.append(engine)
    return found


def _from_labels(name: str, labels: Mapping[str, str]) -> Incarnation | None:
    try:
        endpoint = convert.reachable(labels.get("host", "127.0.0.1"), int(labels["port"]))
        grace_s = float(labels.get("stop_grace_s", DEFAULT_STOP_GRACE_S))
        return Incarnation(name, int(labels["generation"]), (endpoint,), Life.RUNNING, grace_s)
    except (KeyError, ValueError):
        _log.error("the record of %s has no port or generation; its process is left alone", name)
        return None
