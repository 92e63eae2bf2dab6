"""End everything that has a record: the last thing that ``slipstream up`` does."""

from __future__ import annotations

import asyncio
import logging
import os

from dataplane.launchers.base import LaunchError, RunningProcess
from dataplane.launchers.local import LocalLauncher
from dataplane.launchers.records import Records
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)

#: The agent first, or it would start again what is ended; then HAProxy, so that clients see a closed port and not a
#: gateway without replicas; then the engines, all at once; what decides goes last. Other roles come after these.
END_ORDER = ("node", "haproxy", "replica", "router", "controller")


async def end_all(state: StateDir, grace_s: float) -> list[str]:
    """End every process that has a record and remove all records; return the names of those that were ended.

    Each gets SIGTERM and ``grace_s`` seconds, then SIGKILL. What cannot be ended is logged and keeps its record.
    """
    launcher = LocalLauncher(state)
    try:
        running = [process for process in await launcher.adopt() if process.pid != os.getpid()]
        ended: list[str] = []
        for role in sorted({process.role for process in running}, key=_rank):
            gang = [process for process in running if process.role == role]
            results = await asyncio.gather(*(_end(launcher, process, grace_s) for process in gang))
            ended += [name for name in results if name]
        records = Records(state)
        for record in records.all():
            if not record.lives():
                records.remove(record.name, record.pid, record.start_ticks)
        return ended
    finally:
        launcher.close()


def _rank(role: str) -> tuple[int, str]:
    return (END_ORDER.index(role) if role in END_ORDER else len(END_ORDER), role)


async def _end(launcher: LocalLauncher, process: RunningProcess, grace_s: float) -> str:
    try:
        await launcher.stop(process, grace_s)
    except LaunchError as error:
        _log.error("%s", error)
        return ""
    return process.name
