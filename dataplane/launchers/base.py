"""What it means to start, adopt and stop a process, whatever starts it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dataplane.errors import DataplaneError
from dataplane.names import checked

#: Names of processes become file names: replica names and the fixed names of docs/contracts.md.
PROCESS_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,118}[a-z0-9])?")


class LaunchError(DataplaneError):
    """A process could not be started; nothing of it was left behind."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process that is to run.

    ``env`` is added to the launcher's own short base environment and wins over it. ``labels`` are kept with the process
    and come back when it is adopted. Raises InvalidName when the name cannot be a file's name.
    """

    name: str
    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked(PROCESS_NAME, self.name, "process name")
        if not self.argv:
            raise ValueError(f"process {self.name} has no command line")


@dataclass(frozen=True, slots=True, eq=False)
class RunningProcess:
    """A process that a launcher started or adopted.

    ``start_ticks`` is field 22 of ``/proc/PID/stat``: with ``pid`` it names one process for good. ``exited`` is done as
    soon as the process has ended: its result is the exit code, negative when a signal ended it, None when it cannot be
    known because another process was its parent. What it left in its session is killed then; ``stop`` waits for that.
    """

    name: str
    role: str
    pid: int
    start_ticks: int
    labels: Mapping[str, str]
    log: Path
    started_unix_ms: int
    exited: asyncio.Future[int | None]

    @property
    def alive(self) -> bool:
        """Whether its end has not been seen yet."""
        return not self.exited.done()


class Launcher(Protocol):
    """Starts, adopts and stops processes; all methods belong to one event loop."""

    async def start(self, spec: ProcessSpec) -> RunningProcess:
        """Start a process in a session of its own. Raises LaunchError, also when one of that name lives."""
        ...

    async def adopt(self) -> list[RunningProcess]:
        """Return every process that has a record and still lives, whoever started it."""
        ...

    async def stop(self, process: RunningProcess, grace_s: float) -> None:
        """Send SIGTERM, after ``grace_s`` seconds SIGKILL, clear its session, forget its record. Idempotent."""
        ...
