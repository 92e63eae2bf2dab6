"""``slipstream up``: check everything that can be checked, then become the supervisor."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli.client import CommandFailed
from controlplane.cli.options import StateDirOption, state_of
from dataplane.names import host_port
from dataplane.state_dir import StateDir

if TYPE_CHECKING:
    from controlplane.spec import Cluster


def up(
    spec: Annotated[str, typer.Argument(help="A YAML file, or module:attribute for a Python builder.")],
    state_dir: StateDirOption = None,
) -> None:
    """Run a whole cluster on this machine until Ctrl-C: HAProxy, router, controller, node agent and engines."""
    started = time.monotonic()
    from controlplane.spec import load, to_json

    cluster = load(spec)
    if len(cluster.nodes) != 1:
        raise CommandFailed(
            f"`slipstream up` runs one node and {spec} has {len(cluster.nodes)}; "
            "run `slipstream controller`, `slipstream router` and `slipstream node` as services instead"
        )
    state = state_of(state_dir)
    try:
        state.create()
    except ValueError as error:
        raise CommandFailed(str(error), exit_code=2) from error
    lock = _lock(state)
    _check_ports(cluster, state)
    canonical = state.root / "spec.json"
    canonical.write_text(to_json(cluster))
    arguments = ["--state-dir", str(state.root), "--spec", str(canonical), "--started", repr(started)]
    arguments += ["--node", cluster.nodes[0].name, "--lock-fd", str(lock)]
    if cluster.admin.page:
        arguments += ["--page", cluster.admin.page]
    # The supervisor lives as long as the cluster: a fresh interpreter without the spec's and the command
    # line's packages takes a third of the memory.
    os.execv(sys.executable, [sys.executable, "-m", "controlplane.cli.supervisor", *arguments])  # noqa: S606


def _lock(state: StateDir) -> int:
    fd = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        raise CommandFailed(f"another `slipstream up` (pid {owner}) runs in {state.root}") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    os.set_inheritable(fd, True)  # the lock passes to the supervisor, which is this same process
    return fd


def _check_ports(cluster: Cluster, state: StateDir) -> None:
    """Fail before anything starts when somebody else listens where HAProxy or the page is to listen."""
    from controlplane.spec.fields import split_address
    from dataplane.launchers.records import Records

    if any(r.role in ("haproxy", "controller") and r.lives() for r in Records(state).all()):
        return  # left by an earlier supervisor of this directory, and adopted by the next
    wanted = [(listen.host, listen.port) for listen in cluster.gateway.listen]
    if cluster.admin.page:
        wanted.append(split_address(cluster.admin.page))
    for host, port in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
                raise CommandFailed(
                    f"{host_port(host, port)} {reason}; change `gateway.listen` or `admin.page`"
                ) from error
