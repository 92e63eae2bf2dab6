"""``slipstream key``: the API keys of clients."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from controlplane.cli import client, output
from controlplane.cli.options import JsonOption, StateDirOption, YesOption, state_of
from dataplane.pb import admin_pb2

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys. Only their SHA-256 is stored.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is called.")],
    tenant: Annotated[str, typer.Option(help="Whose requests it marks. Default: the key's name.")] = "",
    priority: Annotated[
        str, typer.Option(help="Most urgent priority that its requests may ask for: high, normal or low.")
    ] = "",
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Create a key and show it, once."""
    with client.admin(state_of(state_dir)) as stub:
        request = admin_pb2.CreateKeyRequest(name=name, tenant=tenant or name, priority=priority)
        answer = stub.CreateKey(request, timeout=client.CALL_TIMEOUT_S)
    if as_json:
        output.print_json(answer)
        return
    output.console.print(answer.secret, markup=False)
    output.errors.print("Keep it: it is shown this once. Clients send it as `Authorization: Bearer <key>`.")


@app.command("list")
def list_keys(as_json: JsonOption = False, state_dir: StateDirOption = None) -> None:
    """List keys by name; the keys themselves are not stored."""
    with client.admin(state_of(state_dir)) as stub:
        answer = stub.ListKeys(admin_pb2.ListKeysRequest(), timeout=client.CALL_TIMEOUT_S)
    if as_json:
        output.print_json(answer.keys)
        return
    rows = [
        (
            k.name,
            k.tenant,
            k.priority or "-",
            "spec" if k.from_spec else "command",
            _day(k.created_unix_ms),
            k.sha256[:12],
        )
        for k in answer.keys
    ]
    output.table("API keys", ("Key", "Tenant", "Priority", "From", "Created", "SHA-256"), rows)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    yes: YesOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Revoke a key: requests that carry it get 401 from then on."""
    if not yes:
        typer.confirm(f"Revoke {name}?", abort=True)
    with client.admin(state_of(state_dir)) as stub:
        stub.RevokeKey(admin_pb2.RevokeKeyRequest(name=name), timeout=client.CALL_TIMEOUT_S)
    output.console.print(f"{name} is revoked", markup=False)


def _day(unix_ms: int) -> str:
    if not unix_ms:
        return "-"
    return datetime.datetime.fromtimestamp(unix_ms / 1000, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M")
