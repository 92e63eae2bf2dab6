"""The gateway's secret behind cache salts: made once, kept in the state directory, mode 0600.

Losing it costs the prefix caches of isolated models, nothing else.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from dataplane.launchers.atomic import write_atomically
from dataplane.state_dir import StateDir

FILE_NAME = "salt.key"
KEY_BYTES = 32


def _path(state: StateDir) -> Path:
    return state.gateway / FILE_NAME


def read(state: StateDir) -> bytes:
    """Return the key, empty when there is none."""
    try:
        key = _path(state).read_bytes()
    except OSError:
        return b""
    return key if len(key) == KEY_BYTES else b""


def make(state: StateDir) -> None:
    """Make the key if there is none. Raises OSError."""
    if not read(state):
        write_atomically(_path(state), secrets.token_bytes(KEY_BYTES), durable=True)
