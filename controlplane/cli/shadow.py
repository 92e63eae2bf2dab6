"""``slipstream shadow``: what a second policy would have done, live."""

from __future__ import annotations

from controlplane.cli import client, output
from controlplane.cli.options import JsonOption, StateDirOption, state_of
from dataplane.pb import routing_pb2

COLUMNS = ("Model", "Shadow", "Compared", "Agree", "Gain", "Routed regret", "Shadow regret", "State")


def shadow(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """Compare each model's routing with its shadow policy: how often they agree, and what it would gain.

    Gain and regret are means per decision, in predicted seconds to the first byte.
    """
    with client.routing(state_of(state_dir)) as stub:
        status = stub.Status(routing_pb2.RouterStatusRequest(), timeout=client.CALL_TIMEOUT_S)
    if as_json:
        output.print_json(list(status.shadows))
    elif not status.shadows:
        output.console.print("no model has a shadow policy; routing.shadow in the spec sets one", markup=False)
    else:
        output.table("shadow policies", COLUMNS, [row(told) for told in status.shadows], right=COLUMNS[2:7])


def row(told: routing_pb2.ShadowStatus) -> tuple[str, ...]:
    """Return one model's line."""
    count = max(1, told.decisions)
    policy = told.policy if told.share >= 1 else f"{told.policy} ({told.share:g} of all)"
    state = "off: it failed" if told.off else f"{told.failures} failures" if told.failures else "running"
    return (
        told.model,
        policy,
        str(told.decisions),
        f"{told.agreed / count:.1%}" if told.decisions else "-",
        f"{(told.routed_s - told.shadow_s) / count * 1e3:+.2f} ms",
        f"{told.routed_regret_s / count * 1e3:.2f} ms",
        f"{told.shadow_regret_s / count * 1e3:.2f} ms",
        state,
    )
