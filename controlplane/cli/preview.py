"""What a spec would turn into on an empty machine: every file and every command line, with nothing started."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controlplane.controller import convert
from controlplane.planning.carry_out import carry_out
from controlplane.planning.plan import plan
from controlplane.planning.world import Phase, Record, View
from controlplane.spec import Cluster
from controlplane.spec.convert import api_keys, gateway
from dataplane.engines.command import Command, EngineSite, command
from dataplane.gateway.assets import load_templates
from dataplane.gateway.render import render
from dataplane.gateway.site import Site
from dataplane.pb import gateway_pb2
from dataplane.state_dir import StateDir

#: Stands for the part of request ids that a running gateway makes for itself.
PREVIEW_SITE_ID = "preview"


@dataclass(frozen=True, slots=True)
class Preview:
    """HAProxy's files by name, and the command of each replica that is ours to start."""

    gateway: Mapping[str, str]
    engines: Mapping[str, Command]


def preview(cluster: Cluster, state: StateDir) -> Preview:
    """Return what `slipstream up` with ``state`` would write and start once every replica is ready."""
    records = _records(cluster)
    replicas = [convert.replica(record, Phase.READY, None, cluster) for record in records]
    topology = convert.topology(cluster, records, replicas)
    topology.number = 1
    order = gateway_pb2.GatewayOrder(gateway=gateway(cluster), topology=topology, api_keys=api_keys(cluster))
    site = Site(
        site_id=PREVIEW_SITE_ID,
        runtime_socket=str(state.haproxy_socket),
        spop_socket=str(state.spop_socket),
        log_socket=str(state.log_socket),
        cpu_count=os.cpu_count() or 1,
        fd_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )
    engine_site = EngineSite(python=sys.executable, engine_path=str(state.root / "engine-path"))
    commands = {r.replica: command(convert.launch_of(r), engine_site) for r in records if not r.external}
    return Preview(render(order, site, load_templates()), commands)


def _records(cluster: Cluster) -> list[Record]:
    desired = convert.desired(cluster)
    steps = plan(desired, (), View(), {}, 0.0)
    placed = carry_out(steps.actions, {}, desired, 0).records.values()
    return [replace(record, launch=convert.launch(cluster, record)) for record in placed]
