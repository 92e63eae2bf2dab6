"""CPU time and memory of processes, children and ended threads included."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: clock_getcpuclockid(3): the scheduler's clock of a whole process is ``(~pid << 3) | CPUCLOCK_SCHED``.
_CPUCLOCK_SCHED = 2
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float:
    """Return the seconds on a CPU of all threads of ``pid``, in nanosecond steps; 0.0 when it is gone.

    It is the sum that ``/proc/PID/task/*/schedstat`` shows, with the threads that have ended, which schedstat forgets.
    """
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def with_descendants(pids: Iterable[int]) -> tuple[int, ...]:
    """Return ``pids`` and every process below them, in order."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    queue = list(pids)
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue.extend(children.get(pid, ()))
    return tuple(sorted(found))


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of ``pids`` together."""
    return sum(process_cpu_s(pid) for pid in pids)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process; ``pss_bytes`` counts shared pages by share, so that sums count them once."""

    rss_bytes: int
    pss_bytes: int


def memory(pid: int) -> Memory:
    """Return the memory of ``pid``; zeros when it is gone."""
    found = {"Rss:": 0, "Pss:": 0}
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    except OSError:
        pass
    return Memory(found["Rss:"], found["Pss:"])


def machine_busy_s() -> float:
    """Return the CPU seconds that the whole machine has been busy for, in steps of one tick for each core."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) * _TICK_S
