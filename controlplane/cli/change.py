"""``slipstream plan``, ``apply``, ``drain``, ``undrain``, ``restart`` and ``scale``: change what is wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from controlplane.cli import client, output
from controlplane.cli.options import JsonOption, StateDirOption, YesOption, state_of
from dataplane.pb import admin_pb2, topology_pb2

SpecArgument = Annotated[str, typer.Argument(help="A YAML file, or module:attribute for a Python builder.")]
TargetArgument = Annotated[str, typer.Argument(help="replica/NAME, pool/NAME or node/NAME; a bare name is a replica.")]

TARGET_KINDS = {
    "replica": admin_pb2.KIND_REPLICA,
    "pool": admin_pb2.KIND_POOL,
    "node": admin_pb2.KIND_NODE,
}
#: How often --wait looks whether the cluster has converged.
WAIT_POLL_S = 0.2
NOT_CONVERGED = 3


def _spec_json(source: str) -> str:
    # The spec package costs 0.3 s to import; commands that do not read a spec must not pay it.
    from controlplane.spec import load, to_json

    return to_json(load(source))


def target_of(text: str) -> admin_pb2.Target:
    """Return the object that ``kind/name`` or a bare replica name stands for."""
    kind, slash, name = text.partition("/")
    if not slash:
        return admin_pb2.Target(kind=admin_pb2.KIND_REPLICA, name=text)
    if kind not in TARGET_KINDS or not name:
        raise client.CommandFailed(f"'{text}' is not replica/NAME, pool/NAME or node/NAME", exit_code=2)
    return admin_pb2.Target(kind=TARGET_KINDS[kind], name=name)


def print_changes(changes: Sequence[admin_pb2.Change]) -> None:
    """Print changes as a table, or that there are none."""
    if not changes:
        output.console.print("nothing to change")
        return
    output.table(
        f"{len(changes)} {'change' if len(changes) == 1 else 'changes'}",
        ("Action", "Subject", "Detail"),
        [(c.action, c.subject, c.detail) for c in changes],
    )


def _print_diff(diff: str) -> None:
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in diff.splitlines():
        output.console.print(line, style=styles.get(line[:1], ""), markup=False)


def plan(spec: SpecArgument, as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """Show what `apply` would do, and do nothing."""
    with client.admin(state_of(state_dir)) as stub:
        answer = stub.Plan(admin_pb2.PlanRequest(spec_json=_spec_json(spec)), timeout=client.CALL_TIMEOUT_S)
    if as_json:
        output.print_json(answer)
        return
    _print_diff(answer.diff)
    print_changes(answer.changes)


def apply(
    spec: SpecArgument,
    yes: YesOption = False,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait until every replica is ready.")] = 0.0,
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Make the cluster be what the spec says, after showing the difference."""
    text = _spec_json(spec)
    with client.admin(state_of(state_dir)) as stub:
        planned = stub.Plan(admin_pb2.PlanRequest(spec_json=text), timeout=client.CALL_TIMEOUT_S)
        if not as_json:
            _print_diff(planned.diff)
            print_changes(planned.changes)
        if planned.changes and not yes:
            _confirm("Apply these changes?")
        answer = stub.Apply(
            admin_pb2.ApplyRequest(spec_json=text, expected_revision=planned.revision), timeout=client.CALL_TIMEOUT_S
        )
        if as_json:
            output.print_json(answer)
        else:
            output.console.print(f"revision {answer.revision}")
        if wait_s > 0 and not wait_until_ready(stub, wait_s):
            raise client.CommandFailed("not every replica is ready; see `slipstream get replicas`", NOT_CONVERGED)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise client.CommandFailed("this changes the cluster: say --yes", exit_code=2)
    typer.confirm(question, abort=True)


def wait_until_ready(stub: object, seconds: float) -> bool:
    """Poll until every replica is ready and the gateway has applied the topology; False when time runs out."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_ready(stub.Get(admin_pb2.GetRequest(), timeout=client.CALL_TIMEOUT_S)):  # type: ignore[attr-defined]
            return True
        time.sleep(WAIT_POLL_S)
    return False


def is_ready(answer: admin_pb2.GetResponse) -> bool:
    """Return whether all that is wanted is ready and HAProxy serves the newest topology."""
    pools_full = all(p.replicas_ready >= p.replicas_wanted for p in answer.pools)
    settled = all(v.replica.state == topology_pb2.REPLICA_STATE_READY for v in answer.replicas)
    gateways = [g.report for g in answer.gateways]
    applied = all(r.ready and r.topology_number >= answer.topology_number for r in gateways)
    return bool(answer.pools) and pools_full and settled and bool(gateways) and applied


def drain(
    target: TargetArgument,
    deadline_s: Annotated[float, typer.Option("--deadline", help="Seconds until running streams are let go.")] = 0.0,
    state_dir: StateDirOption = None,
) -> None:
    """Give no new request to a replica, a pool or a node; running streams finish."""
    with client.admin(state_of(state_dir)) as stub:
        request = admin_pb2.DrainRequest(target=target_of(target), deadline_s=deadline_s)
        print_changes(stub.Drain(request, timeout=client.CALL_TIMEOUT_S).changes)


def undrain(target: TargetArgument, state_dir: StateDirOption = None) -> None:
    """Put a drained replica, pool or node back into rotation."""
    with client.admin(state_of(state_dir)) as stub:
        print_changes(
            stub.Undrain(admin_pb2.UndrainRequest(target=target_of(target)), timeout=client.CALL_TIMEOUT_S).changes
        )


def restart(target: TargetArgument, yes: YesOption = False, state_dir: StateDirOption = None) -> None:
    """Start a new generation of a replica, or of every replica of a pool or node one after another, drained first."""
    if not yes:
        _confirm(f"Restart {target}?")
    with client.admin(state_of(state_dir)) as stub:
        print_changes(
            stub.Restart(admin_pb2.RestartRequest(target=target_of(target)), timeout=client.CALL_TIMEOUT_S).changes
        )


def scale(
    pool: Annotated[str, typer.Argument(help="The pool.")],
    replicas: Annotated[int, typer.Argument(min=0, help="How many replicas it is to have.")],
    state_dir: StateDirOption = None,
) -> None:
    """Change how many replicas a pool has; those that go are drained first."""
    with client.admin(state_of(state_dir)) as stub:
        request = admin_pb2.ScaleRequest(pool=pool, replicas=replicas)
        print_changes(stub.Scale(request, timeout=client.CALL_TIMEOUT_S).changes)
