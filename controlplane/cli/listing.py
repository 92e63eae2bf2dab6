"""``slipstream get``, ``describe`` and ``watch``: what the controller knows."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from controlplane.cli import client, output
from controlplane.cli.options import JsonOption, StateDirOption, state_of
from dataplane.names import host_port
from dataplane.pb import admin_pb2, topology_pb2


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    pools = "pools"
    replicas = "replicas"
    nodes = "nodes"
    gateways = "gateways"


def kind_of(text: str) -> Kind:
    """Return the kind that ``text`` names, in the singular or the plural."""
    for kind in Kind:
        if text in (kind.value, kind.value.removesuffix("s")):
            return kind
    raise typer.BadParameter(f"'{text}' is none of {', '.join(kind.value for kind in Kind)}")


KindArgument = Annotated[
    Kind, typer.Argument(parser=kind_of, metavar="KIND", help="models, pools, replicas, nodes or gateways.")
]
KIND_NUMBER = {
    Kind.models: admin_pb2.KIND_MODEL,
    Kind.pools: admin_pb2.KIND_POOL,
    Kind.replicas: admin_pb2.KIND_REPLICA,
    Kind.nodes: admin_pb2.KIND_NODE,
    Kind.gateways: admin_pb2.KIND_GATEWAY,
}


def word(enum: str, prefix: str) -> str:
    """Return ``REPLICA_STATE_READY`` as ``ready``."""
    return enum.removeprefix(prefix).lower()


def state_word(state: topology_pb2.ReplicaState.ValueType) -> str:
    """Return the state of a replica as its word."""
    return word(topology_pb2.ReplicaState.Name(state), "REPLICA_STATE_")


def _models(answer: admin_pb2.GetResponse) -> list[Sequence[str]]:
    return [
        (m.name, f"{m.replicas_ready}/{m.replicas_wanted}", m.policy, ", ".join(m.adapters) or "-")
        for m in answer.models
    ]


def _pools(answer: admin_pb2.GetResponse) -> list[Sequence[str]]:
    return [
        (
            p.name,
            p.model,
            word(topology_pb2.Role.Name(p.role), "ROLE_"),
            word(topology_pb2.EngineKind.Name(p.kind), "ENGINE_KIND_"),
            f"{p.replicas_ready}/{p.replicas_wanted}",
        )
        for p in answer.pools
    ]


def _replicas(answer: admin_pb2.GetResponse) -> list[Sequence[str]]:
    return [
        (
            v.replica.name,
            v.replica.model,
            v.replica.node,
            host_port(v.replica.host, v.replica.port),
            str(v.replica.generation),
            state_word(v.replica.state),
            str(v.streams),
            str(v.restarts),
            output.age(v.state_age_s),
            str(v.pid or "-"),
            v.detail or "",
        )
        for v in answer.replicas
    ]


def _nodes(answer: admin_pb2.GetResponse) -> list[Sequence[str]]:
    return [
        (
            n.name,
            n.address,
            "ready" if n.connected else "dead",
            output.age(n.report_age_s),
            str(n.replicas),
            str(n.cpu_count),
            f"{n.memory_bytes / 2**30:.1f} GiB",
        )
        for n in answer.nodes
    ]


def _gateways(answer: admin_pb2.GetResponse) -> list[Sequence[str]]:
    return [
        (
            g.gateway.name,
            g.gateway.node,
            ", ".join(host_port(listener.host, listener.port) for listener in g.gateway.listeners),
            "ready" if g.report.ready else "dead",
            str(g.report.topology_number),
            str(sum(s.current_streams for s in g.report.servers)),
            g.report.error or "",
        )
        for g in answer.gateways
    ]


COLUMNS: dict[Kind, tuple[Sequence[str], Callable[[admin_pb2.GetResponse], list[Sequence[str]]]]] = {
    Kind.models: (("Model", "Ready", "Policy", "Adapters"), _models),
    Kind.pools: (("Pool", "Model", "Role", "Engine", "Ready"), _pools),
    Kind.replicas: (
        ("Replica", "Model", "Node", "Address", "Gen", "State", "Streams", "Restarts", "Age", "Pid", "Detail"),
        _replicas,
    ),
    Kind.nodes: (("Node", "Address", "State", "Heard", "Replicas", "Cores", "Memory"), _nodes),
    Kind.gateways: (("Gateway", "Node", "Listens on", "State", "Topology", "Streams", "Error"), _gateways),
}
RIGHT = ("Gen", "Streams", "Restarts", "Age", "Pid", "Heard", "Replicas", "Cores", "Memory", "Ready", "Topology")


def get(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="Only this one.")] = "",
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """List models, pools, replicas, nodes or gateways."""
    with client.admin(state_of(state_dir)) as stub:
        answer = stub.Get(admin_pb2.GetRequest(kind=KIND_NUMBER[kind], name=name), timeout=client.CALL_TIMEOUT_S)
    if as_json:
        output.print_json(getattr(answer, kind.value))
        return
    columns, rows = COLUMNS[kind]
    title = f"{answer.cluster or 'no cluster'} · {kind.value} · topology {answer.topology_number}"
    output.table(title, columns, rows(answer), RIGHT)


def describe(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="Its name.")],
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Show one object, the part of the spec that made it, its events and its last log lines."""
    with client.admin(state_of(state_dir)) as stub:
        answer = stub.Describe(
            admin_pb2.DescribeRequest(kind=KIND_NUMBER[kind], name=name), timeout=client.CALL_TIMEOUT_S
        )
    if as_json:
        output.print_json(answer)
        return
    columns, rows = COLUMNS[kind]
    output.table(f"{answer.object.cluster} · {name}", columns, rows(answer.object), RIGHT)
    if answer.spec_yaml:
        output.console.print("\n[bold]Spec[/]")
        output.console.print(answer.spec_yaml.rstrip(), markup=False)
    if answer.events:
        output.console.print("\n[bold]Events[/]")
        for event in answer.events:
            _print_event(event)
    if answer.log_lines:
        output.console.print("\n[bold]Log[/]")
        for line in answer.log_lines:
            output.console.print(line, markup=False)


def watch(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """Print the cluster's events as they happen, until Ctrl-C."""
    with client.admin(state_of(state_dir)) as stub:
        for event in stub.Watch(admin_pb2.WatchRequest()):
            if as_json:
                output.print_json(event)
            else:
                _print_event(event)


def _print_event(event: admin_pb2.Event) -> None:
    when = datetime.datetime.fromtimestamp(event.unix_ms / 1000, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    output.console.print(f"{when}  {event.subject}  {event.reason}  {event.message}", markup=False)
