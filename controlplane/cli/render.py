"""``slipstream render`` and ``schema``: what a spec turns into, without starting anything."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.change import SpecArgument


def schema() -> None:
    """Print the JSON Schema of the spec."""
    from controlplane.spec import json_schema

    output.print_json(json_schema())


def render(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder to write to; it is made when it is not there.")],
) -> None:
    """Write haproxy.cfg, spoe.cfg, the Lua and every engine's command line and environment; start nothing."""
    from controlplane.controller.preview import preview
    from controlplane.spec import load
    from dataplane.state_dir import default_root

    files = preview(load(spec), default_root().absolute())
    for name, text in files.gateway.items():
        path = out / "gateway" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for replica, command in files.engines.items():
        path = out / "engines" / f"{replica}.sh"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_script(command.argv, command.env))
        (out / "engines" / f"{replica}.json").write_text(
            json.dumps({"argv": list(command.argv), "env": dict(sorted(command.env.items()))}, indent=2) + "\n"
        )
    output.console.print(
        f"{len(files.gateway)} gateway files and {len(files.engines)} engine commands are in {out}", markup=False
    )


def _script(argv: tuple[str, ...], env: dict[str, str]) -> str:
    assignments = [f"{name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return "#!/bin/sh\nexec env " + " \\\n  ".join([*assignments, *(shlex.quote(a) for a in argv)]) + "\n"
