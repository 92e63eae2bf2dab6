"""The files of a journal: names, rotation, and how much disk they take."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

#: Bytes after which a file is followed by the next, and files that are kept, the newest: 1 GiB of disk at most.
FILE_BYTES = 64 << 20
FILES = 16
#: What may be set instead.
FILE_BYTES_RANGE = (1 << 20, 4 << 30)
FILES_RANGE = (2, 1_000)

#: ``<run>-<file>.jsonl``; a run is named after the UTC second and the process that began it, so names sort by age.
NAME = re.compile(r"(?P<run>[0-9]{8}T[0-9]{6}Z-[0-9]{7,10}-[0-9]{4})-(?P<file>[0-9]{6})\.jsonl")
_MODE = 0o600


def run_name(now_s: float, pid: int, number: int) -> str:
    """Return the name of a process's ``number``-th run."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now_s))}-{pid:07d}-{number % 10_000:04d}"


def journals(folder: Path) -> list[Path]:
    """Return the journal's files in a folder, oldest first; none when there is no folder. Raises OSError."""
    try:
        return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


@dataclass(slots=True)
class JournalFiles:
    """Appends to the newest file of a run and goes on to the next when it is full; not thread-safe.

    Whole lines or nothing: after a failed write the file is cut back to what it was. Every file begins with a head
    that the caller gives.
    """

    folder: Path
    run: str
    file_bytes: int = FILE_BYTES
    files: int = FILES
    number: int = 0
    _descriptor: int = field(default=-1, init=False)
    _size: int = field(default=0, init=False)

    @property
    def full(self) -> bool:
        """Whether the next lines belong into a new file."""
        return self._descriptor < 0 or self._size >= self.file_bytes

    def next(self, head: bytes) -> None:
        """Begin the run's next file, and delete the oldest of all runs beyond ``files``. Raises OSError."""
        self.close()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for old in journals(self.folder)[: -(self.files - 1)]:
            old.unlink(missing_ok=True)
        path = self.folder / f"{self.run}-{self.number + 1:06d}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
        self._size = 0
        try:
            self.append(head)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise
        self.number += 1

    def append(self, lines: bytes) -> None:
        """Write whole lines. Raises OSError, and then none of them is in the file."""
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(lines)

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
