"""Leases of TCP ports for tests: below the ephemeral range, never the same for two test processes at once."""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
import tempfile
from pathlib import Path

FIRST_PORT = 10_000
LAST_PORT = 31_999  # the kernel gives ports from 32,768 on to clients
BLOCK = 20

_folder = Path(tempfile.gettempdir()) / "slipstream-test-ports"
_free: list[int] = []
_locks: list[int] = []


def _lease_block() -> list[int]:
    _folder.mkdir(exist_ok=True)
    for first in range(FIRST_PORT, LAST_PORT - BLOCK, BLOCK):
        fd = os.open(_folder / f"{first}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        _locks.append(fd)  # held until the process ends
        return list(range(first, first + BLOCK))
    raise RuntimeError("every block of test ports is taken")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def lease(count: int = 1) -> list[int]:
    """Return ``count`` ports on 127.0.0.1 that nothing listens on and no other test process is given."""
    taken: list[int] = []
    while len(taken) < count:
        if not _free:
            _free.extend(_lease_block())
        port = _free.pop(0)
        if _is_free(port):
            taken.append(port)
    return taken


def lease_block() -> list[int]:
    """Return ``BLOCK`` ports in a row, all of them free, in nobody else's lease."""
    while True:
        block = _lease_block()
        if all(_is_free(port) for port in block):
            return block


@atexit.register
def _release() -> None:
    for fd in _locks:
        os.close(fd)
