"""What a spec turns into, with nothing started: HAProxy's files and the engines' commands."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from controlplane.controller import convert
from controlplane.errors import InvalidSpec
from controlplane.planning.carry_out import carry_out
from controlplane.planning.plan import plan
from controlplane.planning.world import Phase, Record, View
from controlplane.spec.model import Cluster
from dataplane.engines.command import Command, EngineSite, command
from dataplane.gateway.applier import site_of
from dataplane.gateway.assets import load_templates
from dataplane.gateway.render import render
from dataplane.pb import gateway_pb2
from dataplane.state_dir import StateDir


@dataclass(frozen=True, slots=True)
class Preview:
    """File name -> text of the gateway, and replica -> command of every engine that we would start."""

    gateway: dict[str, str]
    engines: dict[str, Command]


def preview(cluster: Cluster, root: Path) -> Preview:
    """Return what a fresh controller would have made of ``cluster``, all replicas ready, on this machine.

    ``root`` is the absolute path that stands for the state directory in it. Raises InvalidSpec when a replica has no
    place.
    """
    records = _records(cluster)
    state = StateDir(root)
    replicas = [convert.replica(record, Phase.READY, None, cluster) for record in records]
    topology = convert.topology(cluster, records, replicas)
    topology.number = 1
    orders = {node.name: convert.orders(node.name, records, cluster, topology, ()) for node in cluster.nodes}
    gateway = next(made.gateway for made in orders.values() if made.HasField("gateway"))
    site = EngineSite(sys.executable, engine_path=str(root / "engine-path"), reports=str(state.reports_socket))
    engines = {record.replica: command(convert.launch_of(record), site) for record in records if not record.external}
    return Preview(_gateway_files(gateway, state, cluster), engines)


def _records(cluster: Cluster) -> list[Record]:
    desired = convert.desired(cluster)
    made = plan(desired, (), View(), {}, 0.0)
    if made.blocked:
        raise InvalidSpec("; ".join(problem.message for problem in made.blocked))
    outcome = carry_out(made.actions, {}, desired, 0)
    return [replace(record, launch=convert.launch(cluster, record)) for record in outcome.records.values()]


def _gateway_files(order: gateway_pb2.GatewayOrder, state: StateDir, cluster: Cluster) -> dict[str, str]:
    return render(order, site_of(state, cluster.cluster, order.gateway.name), load_templates())
