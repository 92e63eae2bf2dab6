"""The ``slipstream`` command: every verb, and how failures become exit codes.

Exit codes: 0 done, 1 failed, 2 used wrongly, 3 not (yet) converged.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from controlplane import __version__
from controlplane.cli import change, explain, keys, listing, output, processes, render, replay, shadow, simulate
from controlplane.cli.client import CommandFailed
from controlplane.cli.up import up
from controlplane.errors import ControlplaneError
from dataplane.errors import DataplaneError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve large language models from vLLM replicas on plain VMs.",
)

SERVICES = {
    "controller": ("controlplane.controller", "Run the controller: the admin API, the reconcile loop and the page."),
    "router": ("controlplane.router", "Run the router: HAProxy asks it which replica answers."),
    "node": ("dataplane.node", "Run the node agent: engines, and HAProxy on a gateway."),
}


def _become(module: str, arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - the same program, leaner


def _add_service(name: str, module: str, summary: str) -> None:
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, context_settings=settings, help=f"{summary} `{name} --help` lists its options.")
    def run(context: typer.Context) -> None:
        _become(module, list(context.args))


for _name, (_module, _summary) in SERVICES.items():
    _add_service(_name, _module, _summary)

for _command in (
    up,
    change.plan,
    change.apply,
    listing.get,
    listing.describe,
    listing.watch,
    change.drain,
    change.undrain,
    change.restart,
    change.scale,
    explain.why,
    processes.status,
    processes.logs,
    render.render,
    render.schema,
    simulate.simulate,
    replay.replay,
    shadow.shadow,
):
    app.command()(_command)
app.add_typer(keys.app, name="key")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Serve large language models from vLLM replicas on plain VMs."""
    if version:
        output.console.print(f"slipstream {__version__}")
        raise typer.Exit


def main() -> None:
    """Run one command; errors that we raise on purpose are one line on standard error."""
    try:
        app()
    except CommandFailed as error:
        output.errors.print(f"error: {error}", style="red", markup=False)
        sys.exit(error.exit_code)
    except (ControlplaneError, DataplaneError) as error:
        output.errors.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a closed pager is no error
        sys.exit(1)


if __name__ == "__main__":
    main()
