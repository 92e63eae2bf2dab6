"""The child of `slipstream up` that applies the spec, waits for readiness and tells how to use the cluster.

It is a process of its own so that the supervisor, which lives as long as the cluster, never imports gRPC.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import grpc

from controlplane.cli import client, output
from controlplane.cli.change import WAIT_POLL_S, is_ready
from controlplane.cli.listing import state_word
from dataplane.names import host_port
from dataplane.pb import admin_pb2, admin_pb2_grpc, topology_pb2
from dataplane.state_dir import StateDir

#: The controller answers within a second of its start; a loaded machine gets this long.
CONTROLLER_DEADLINE_S = 30.0
#: A replica that is not ready by then gets a line that says why.
SLOW_REPLICA_S = 20.0


def main() -> None:
    """Parse the arguments, bring the cluster up, and exit 0 once it is ready."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True, help="canonical JSON of the spec")
    parser.add_argument("--started", type=float, required=True, help="CLOCK_MONOTONIC at the start, seconds")
    arguments = parser.parse_args()
    state = StateDir(arguments.state_dir)
    text = arguments.spec.read_text()
    try:
        _wait_for(state.controller_socket, CONTROLLER_DEADLINE_S)
        with client.admin(state) as stub:
            _apply(stub, text)
            answer = _wait_until_ready(stub)
    except client.CommandFailed as failure:
        output.errors.print(str(failure), style="red", markup=False)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    print_banner(json.loads(text), answer, state, time.monotonic() - arguments.started)


def _wait_for(socket: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not socket.exists():
        if time.monotonic() > deadline:
            raise client.CommandFailed(f"the controller did not start within {seconds:.0f} s; see logs/controller.log")
        time.sleep(0.05)


def _apply(stub: admin_pb2_grpc.AdminServiceStub, text: str) -> None:
    # The socket may be there before a server answers on it, or be a dead controller's.
    deadline = time.monotonic() + CONTROLLER_DEADLINE_S
    while True:
        try:
            stub.Apply(admin_pb2.ApplyRequest(spec_json=text), timeout=CONTROLLER_DEADLINE_S, wait_for_ready=True)
            return
        except grpc.RpcError as error:
            passing = cast(grpc.Call, error).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(WAIT_POLL_S)


def _wait_until_ready(stub: admin_pb2_grpc.AdminServiceStub) -> admin_pb2.GetResponse:
    shown = ""
    told: set[str] = set()
    since = time.monotonic()
    while True:
        answer = stub.Get(admin_pb2.GetRequest(), timeout=client.CALL_TIMEOUT_S)
        if is_ready(answer):
            return answer
        ready = sum(v.replica.state == topology_pb2.REPLICA_STATE_READY for v in answer.replicas)
        line = f"starting: {ready} of {len(answer.replicas)} replicas are ready"
        if line != shown and answer.replicas:
            output.console.print(line)
            shown = line
        _tell_troubles(answer, told, slow=time.monotonic() - since > SLOW_REPLICA_S)
        time.sleep(WAIT_POLL_S)


def _tell_troubles(answer: admin_pb2.GetResponse, told: set[str], slow: bool) -> None:
    for view in answer.replicas:
        failed = view.replica.state == topology_pb2.REPLICA_STATE_FAILED
        waiting = slow and view.replica.state != topology_pb2.REPLICA_STATE_READY
        trouble = f"{view.replica.name} is {state_word(view.replica.state)}: {view.detail}"
        if (failed or waiting) and view.detail and trouble not in told:
            told.add(trouble)
            output.console.print(trouble, style="yellow", markup=False)
            output.console.print(f"  slipstream logs {view.replica.name}", markup=False)
    for gateway in answer.gateways:
        if gateway.report.error and gateway.report.error not in told:
            told.add(gateway.report.error)
            output.console.print(f"{gateway.gateway.name}: {gateway.report.error}", style="red", markup=False)


def print_banner(spec: dict[str, Any], answer: admin_pb2.GetResponse, state: StateDir, seconds: float) -> None:
    """Print the URL, a curl command, an OpenAI Python snippet and the page's address."""
    listener = answer.gateways[0].gateway.listeners[0]
    scheme = "https" if listener.certificate else "http"
    host = "127.0.0.1" if listener.host in ("0.0.0.0", "::") else listener.host  # noqa: S104 - compared, not bound
    base = f"{scheme}://{host_port(host, listener.port)}/v1"
    model = answer.models[0].name
    keyed = answer.gateways[0].gateway.require_api_key
    header = " \\\n    -H 'authorization: Bearer YOUR_KEY'" if keyed else ""
    page = (spec.get("admin") or {}).get("page")
    print_ = output.console.print
    print_(f"\n[bold green]Ready[/] in {seconds:.1f} s: cluster [bold]{answer.cluster}[/], ", end="")
    print_(", ".join(f"{m.name} on {m.replicas_ready} replicas" for m in answer.models), markup=False)
    print_(f"\n  OpenAI URL   {base}", markup=False)
    if page:
        print_(f"  Page         http://{page}/", markup=False)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True})
    print_("\n  Try it with curl:\n", markup=False)
    print_(
        f"  curl -N {base}/chat/completions{header} \\\n    -H 'content-type: application/json' \\\n    -d '{body}'",
        markup=False,
    )
    print_("\n  or with the OpenAI client:\n", markup=False)
    print_(_snippet(base, model, keyed), markup=False)
    if keyed:
        print_("  Keys: slipstream key create NAME\n", markup=False)
    print_(f"  Look around: slipstream get replicas --state-dir {state.root}", markup=False)
    print_("  Ctrl-C stops everything that this command started.\n", markup=False)


def _snippet(base: str, model: str, keyed: bool) -> str:
    key = "YOUR_KEY" if keyed else "none"
    lines = (
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{base}", api_key="{key}")',
        f'stream = client.chat.completions.create(model="{model}", stream=True,',
        '    messages=[{"role": "user", "content": "Hello!"}])',
        "for chunk in stream:",
        '    print(chunk.choices[0].delta.content or "", end="")',
    )
    return "".join(f"  {line}\n" for line in lines)


if __name__ == "__main__":
    main()
