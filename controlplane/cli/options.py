"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dataplane.state_dir import StateDir, default_root

StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        help="Folder of sockets, logs and records. Default: $SLIPSTREAM_STATE_DIR, else ~/.local/state/slipstream.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def state_of(state_dir: Path | None) -> StateDir:
    """Return the state directory that a command works on."""
    return StateDir((state_dir or default_root()).absolute())
