"""``slipstream status`` and ``logs``: the processes of this machine."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated, TypedDict

import grpc
import typer

from controlplane.cli import client, output
from controlplane.cli.options import JsonOption, StateDirOption, state_of
from dataplane.launchers.records import ProcessRecord, Records
from dataplane.pb import admin_pb2, routing_pb2, topology_pb2
from dataplane.state_dir import StateDir

ROLE_ORDER = ("haproxy", "router", "controller", "node", "replica")
#: A status command must answer although a part hangs.
STATUS_TIMEOUT_S = 2.0
FOLLOW_POLL_S = 0.2
MAX_LOG_LINES = 100_000


class ProcessStatus(TypedDict):
    """One line of ``slipstream status --json``."""

    name: str
    role: str
    pid: int
    state: str
    ready: bool


def status(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """List every process that runs here; exits 3 when one of them is not ready."""
    state = state_of(state_dir)
    rows = statuses(state)
    if as_json:
        output.print_json(rows)
    else:
        cells = [(r["name"], r["role"], str(r["pid"]), r["state"], "yes" if r["ready"] else "no") for r in rows]
        output.table(str(state.root), ("Process", "Role", "Pid", "State", "Ready"), cells, ("Pid",))
    if not rows or not all(r["ready"] for r in rows):
        raise typer.Exit(3)


def statuses(state: StateDir) -> list[ProcessStatus]:
    """Return the state of every process that has a record, HAProxy first, replicas last."""
    answer = _cluster(state)
    records = sorted(Records(state).all(), key=lambda r: (ROLE_ORDER.index(r.role), r.name))
    rows: list[ProcessStatus] = []
    for record in records:
        alive = record.lives()
        ready = alive and _is_ready(record, answer, state)
        rows.append(
            ProcessStatus(
                name=record.name,
                role=record.role,
                pid=record.pid,
                state="running" if alive else "dead",
                ready=ready,
            )
        )
    return rows


def _cluster(state: StateDir) -> admin_pb2.GetResponse | None:
    try:
        with client.admin(state) as stub:
            return stub.Get(admin_pb2.GetRequest(), timeout=STATUS_TIMEOUT_S)
    except client.CommandFailed:
        return None


def _router_answers(state: StateDir) -> bool:
    try:
        with client.routing(state) as stub:
            return stub.Status(routing_pb2.RouterStatusRequest(), timeout=STATUS_TIMEOUT_S).topology_number > 0
    except (client.CommandFailed, grpc.RpcError):
        return False


def _is_ready(record: ProcessRecord, answer: admin_pb2.GetResponse | None, state: StateDir) -> bool:
    if record.role == "router":
        return _router_answers(state)
    if answer is None:
        return False  # without the controller nothing vouches for the others
    if record.role == "replica":
        return any(
            v.replica.name == record.name and v.replica.state == topology_pb2.REPLICA_STATE_READY
            for v in answer.replicas
        )
    if record.role == "haproxy":
        return any(g.report.ready and g.report.pid == record.pid for g in answer.gateways)
    if record.role == "node":
        return any(n.connected and n.pid == record.pid for n in answer.nodes)
    return True


def logs(
    process: Annotated[str, typer.Argument(help="A replica, or controller, router, node, haproxy.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=MAX_LOG_LINES, help="How many to show.")] = 200,
    state_dir: StateDirOption = None,
) -> None:
    """Print the last lines of a process's output."""
    state = state_of(state_dir)
    path = state.logs / f"{process}.log"
    known = sorted(p.stem for p in state.logs.glob("*.log"))
    if process not in known:  # also keeps a name with a slash from reaching the file system
        raise client.CommandFailed(f"there is no log of '{process}'; there are: {', '.join(known) or 'none'}")
    with path.open(errors="replace") as file:
        for line in deque(file, maxlen=lines):
            sys.stdout.write(line)
        sys.stdout.flush()
        while follow:
            _print_rest(file.read())
            time.sleep(FOLLOW_POLL_S)
            if _was_replaced(path, file.tell()):
                return


def _print_rest(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _was_replaced(path: Path, position: int) -> bool:
    return not path.exists() or path.stat().st_size < position
