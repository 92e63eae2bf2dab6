"""``slipstream why``: one routing decision, in full."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from controlplane.cli import client, output
from controlplane.cli.options import JsonOption, StateDirOption, state_of
from dataplane.pb import routing_pb2


def why(
    request_id: Annotated[str, typer.Argument(help="The answer's x-slipstream-request-id.")],
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Explain which replicas were candidates for a request, what was known of each, and why one was chosen."""
    with client.routing(state_of(state_dir)) as stub:
        receipt = stub.Explain(routing_pb2.ExplainRequest(request_id=request_id), timeout=client.CALL_TIMEOUT_S)
    if as_json:
        output.print_json(receipt)
    else:
        print_receipt(receipt)


def print_receipt(receipt: routing_pb2.Receipt) -> None:
    """Print a receipt: facts, the table of candidates, what was left out, and how it ended."""
    when = datetime.datetime.fromtimestamp(receipt.decided_unix_us / 1e6, tz=datetime.UTC)
    model = receipt.model + (f" (adapter {receipt.adapter})" if receipt.adapter else "")
    facts = (
        ("request", receipt.request_id),
        ("decided", when.strftime("%Y-%m-%d %H:%M:%S.%f UTC")),
        ("kind, model", f"{receipt.kind}, {model}"),
        ("prompt", f"{receipt.prompt_bytes} bytes, {receipt.prefix_blocks} prefix blocks"),
        ("outcome", " ".join(x for x in (receipt.outcome, receipt.error_code, receipt.server) if x)),
        ("policy", f"{receipt.policy} (settings {receipt.policy_number}), topology {receipt.topology_number}"),
        ("reason", receipt.reason),
        *((("waited", f"{receipt.waited_ms} ms in the queue"),) if receipt.waited_ms else ()),
    )
    for name, value in facts:
        output.console.print(f"{name:>12}  {value}", markup=False)
    _print_candidates(receipt)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(receipt.rejected.items())) or "none"
    output.console.print(f"{'eligible':>12}  {receipt.eligible}; left out: {rejected}", markup=False)
    if receipt.runner_up:
        output.console.print(f"{'runner-up':>12}  {receipt.runner_up}, behind by {receipt.margin:.4g}", markup=False)
    if receipt.HasField("completion"):
        _print_completion(receipt)


def _print_candidates(receipt: routing_pb2.Receipt) -> None:
    """Print a column for each candidate and a row for each signal: signals are many, and names are long."""
    candidates = receipt.candidates
    if not candidates:
        return
    names = dict.fromkeys(signal.name for candidate in candidates for signal in candidate.signals)
    known = [{signal.name: signal for signal in candidate.signals} for candidate in candidates]
    servers = [("→ " if c.server == receipt.server else "") + c.server for c in candidates]
    rows = [(name, *(_signal(of[name]) if name in of else "-" for of in known)) for name in names]
    rows.append(("score", *(f"{candidate.score:.4g}" for candidate in candidates)))
    output.table("candidates, best first (signal @ its age)", ("Signal", *servers), rows, servers)


def _signal(signal: routing_pb2.Signal) -> str:
    value = f"{signal.value:,.0f}" if abs(signal.value) >= 1000 else f"{signal.value:.4g}"
    return value if signal.age_ms < 0 else f"{value} @ {output.age(signal.age_ms / 1000)}"


def _print_completion(receipt: routing_pb2.Receipt) -> None:
    end = receipt.completion
    first = f"first byte after {end.first_byte_ms} ms" if end.first_byte_ms >= 0 else "no byte"
    moved = "" if end.server == receipt.server else f" by {end.server}"
    output.console.print(
        f"{'ended':>12}  {end.status}{moved}, {first}, {end.total_ms} ms in all, {end.bytes} bytes, "
        f"state {end.termination}, {end.retries} retries",
        markup=False,
    )
