"""The supervisor adopts what its children leave behind, so that nothing is lost to PID 1."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection

from dataplane.launchers import procfs

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def become_subreaper() -> None:
    """Become the parent of every orphan among our descendants (Linux 3.4). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def reap_orphans(own: Collection[int]) -> list[tuple[int, int]]:
    """Reap ended children that are not in ``own`` and return (pid, exit code) of each.

    ``own`` are the children that somebody else waits for: their exit codes are not taken away. A subreaper calls this
    on SIGCHLD, or now and then; else ended orphans stay as zombies for as long as it lives.
    """
    reaped: list[tuple[int, int]] = []
    for process in procfs.every():
        if process.parent != os.getpid() or process.pid in own or not process.dead:
            continue
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            continue
        if pid:
            reaped.append((pid, os.waitstatus_to_exitcode(status)))
    return reaped
