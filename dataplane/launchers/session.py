"""What a process leaves behind in its session: an engine's worker processes outlive a killed server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from dataplane.launchers import procfs

#: Between two looks at what is left; a killed process usually is gone at the first.
_LOOK_INTERVAL_S = 0.02
#: A killed process that holds an accelerator's memory needs seconds to end; one in uninterruptible sleep may never.
CLEAR_TIMEOUT_S = 20.0


def leftovers(leader: int, since_ticks: int, log: Path | None) -> list[int]:
    """Return the living processes of the session that ``leader`` led, without the leader itself.

    A session's number cannot be another's while one of its processes or its unreaped leader is left. When the leader
    may have been reaped (``log`` is given) that is not enough: then only processes that write to its log count, and
    none when a process now has the leader's pid and another start.
    """
    if log is not None:
        now = procfs.stat(leader)
        if now is not None and now.start_ticks != since_ticks:
            return []
    return [
        process.pid
        for process in procfs.every()
        if process.session == leader
        and process.pid not in {leader, os.getpid()}
        and process.start_ticks >= since_ticks
        and not process.dead
        and (log is None or procfs.writes_to(process.pid, log))
    ]


def kill_leftovers(leader: int, since_ticks: int, log: Path | None) -> int:
    """Send SIGKILL to what is left of a session; return to how many."""
    killed = 0
    for pid in leftovers(leader, since_ticks, log):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            descriptor = os.pidfd_open(pid)
            try:
                # The pid may be another process's since the list was made: only the descriptor is certain.
                found = procfs.stat(pid)
                if found is not None and found.session == leader:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    killed += 1
            finally:
                os.close(descriptor)
    return killed


async def clear(leader: int, since_ticks: int, log: Path | None, timeout_s: float = CLEAR_TIMEOUT_S) -> bool:
    """Kill what is left of a session until nothing is; False when something still is after ``timeout_s`` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    # Reading all of /proc takes milliseconds, in which those who wait for the end have more urgent things to do.
    while await asyncio.to_thread(kill_leftovers, leader, since_ticks, log):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_LOOK_INTERVAL_S)
    return True
