"""What the kernel tells of processes: identity, session and whether they live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of ``/proc/PID/stat`` that say who a process is (proc(5))."""

    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int  # clock ticks since the machine started

    @property
    def dead(self) -> bool:
        """Whether it has ended and only waits to be reaped."""
        return self.state in {"Z", "X", "x"}


def parse_stat(text: str) -> ProcessStat:
    """Read one ``stat`` line. The command name may hold spaces and brackets: what counts comes after the last ``)``."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return ProcessStat(
        pid=int(head.split(" ", 1)[0]),
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
    )


def stat(pid: int) -> ProcessStat | None:
    """Return what the kernel tells of ``pid``; None when there is no such process."""
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def every() -> Iterator[ProcessStat]:
    """Yield every process that can be seen."""
    for entry in os.scandir(_PROC):
        if entry.name.isdigit() and (found := stat(int(entry.name))) is not None:
            yield found


def writes_to(pid: int, path: Path) -> bool:
    """Whether standard output or error of ``pid`` is the file at ``path``."""
    for descriptor in ("1", "2"):
        try:
            if (_PROC / str(pid) / "fd" / descriptor).samefile(path):
                return True
        except OSError:
            continue
    return False


def boot_id() -> str:
    """Return what the kernel calls this run of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
