"""The log file of a process: opened afresh, capped in size, read from its end.

A process writes straight to its file, with O_APPEND and no one in between, so it never stalls or dies with its agent.
When a file has grown past its cap, its newest bytes are copied to ``<file>.1`` and it is cut to nothing: lines that are
written between the two are lost, which is the price of a process that knows nothing of it. At rest a process holds at
most two caps of disk.
"""

from __future__ import annotations

import os
from pathlib import Path

#: Days of an engine's ordinary log, or one bad hour of a chatty one.
MAX_LOG_BYTES = 16 << 20
#: Between two looks at the sizes: at 10 MB/s of log a file passes its cap by 50 MB at most.
CAP_INTERVAL_S = 5.0
#: One line of a report; a longer one is cut.
MAX_LINE_CHARS = 500
_TAIL_BYTES = 32 << 10
_COPY_BYTES = 1 << 20


def previous(path: Path) -> Path:
    """Return where the log before this one is kept."""
    return path.with_name(f"{path.name}.1")


def open_fresh(path: Path) -> int:
    """Keep an earlier log as the previous one and return a descriptor that appends to an empty file, mode 0600."""
    try:
        if path.stat().st_size:
            path.replace(previous(path))
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def cap(path: Path, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """Cut the file to nothing when it is larger than ``max_bytes``, its newest ``max_bytes`` kept as the previous log.

    On a full disk nothing is kept: the space is worth more than the lines. Returns whether it was cut.
    """
    try:
        size = path.stat().st_size
        if size <= max_bytes:
            return False
        try:
            _keep_end(path, size - max_bytes, max_bytes)
        except OSError:
            previous(path).unlink(missing_ok=True)
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True


def _keep_end(path: Path, start: int, length: int) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with path.open("rb") as source, scratch.open("wb") as kept:
            scratch.chmod(0o600)
            source.seek(start)
            while length > 0 and (chunk := source.read(min(_COPY_BYTES, length))):  # a writer may be faster than we are
                kept.write(chunk)
                length -= len(chunk)
        scratch.replace(previous(path))
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def tail(path: Path, lines: int) -> list[str]:
    """Return the last ``lines`` lines that are not empty, oldest first; none when the file cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    found = [line.rstrip()[:MAX_LINE_CHARS] for line in text.splitlines()]
    if size > _TAIL_BYTES:
        found = found[1:]  # its beginning was not read
    return [line for line in found if line][-lines:]
