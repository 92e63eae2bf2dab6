"""Lines from the event loop to the disk, by a thread of their own: no decision ever waits for a disk.

The event loop only appends to a queue, which is bounded in bytes. When the disk is slower than the lines, or full,
lines are dropped and counted, and the journal says where and how many.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from controlplane.router.journal_files import JournalFiles
from controlplane.router.journal_lines import IN_FORCE_START, INSTALL_START, Gap, encode

_log = logging.getLogger(__name__)

#: Lines that wait for the disk: some 30,000 decisions.
MAX_PENDING_BYTES = 32 << 20
#: Written at once, so that a file is at most so much longer than its limit.
CHUNK_BYTES = 1 << 20
#: Seconds between two looks at the queue: what a crash of the router loses at most.
INTERVAL_S = 0.25
#: Seconds until a disk that refused a write is tried again.
RETRY_S = 5.0
#: Seconds that a router which ends waits for the last lines.
CLOSE_TIMEOUT_S = 2.0


class JournalWriter:
    """Owns one run's files. ``put`` and ``close`` belong to one thread; ``head`` runs in the writer's own.

    Each number is written by one thread only, so that both may read it without a lock.
    """

    def __init__(self, files: JournalFiles, head: Callable[[int], bytes]) -> None:
        """``head`` returns the first line of the file with that number."""
        self.lines = 0
        self.dropped = 0
        #: Of those that were taken from the queue.
        self.lost = 0
        self._files = files
        self._head = head
        self._queue: deque[bytes] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0
        self._gap = 0
        self._lost_here = 0
        #: The last install's line, as the head of the next file has it.
        self._in_force = b""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def pending_bytes(self) -> int:
        """Bytes of lines that wait for the disk."""
        return self._put_bytes - self._taken_bytes

    def put(self, line: bytes) -> None:
        """Take one line without its end; never waits, never raises."""
        size = len(line)
        if self.pending_bytes + size > MAX_PENDING_BYTES:
            self.dropped += 1
            self._gap += 1
            return
        if self._gap:
            self._append(encode(Gap(lines=self._gap)))
            self._gap = 0
        self._append(line)
        self.lines += 1

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._files.run

    def end(self) -> None:
        """Write what waits and then end, without being waited for."""
        self._ending.set()

    def close(self) -> bool:
        """Write what waits, for CLOSE_TIMEOUT_S at most; return whether all of it was written."""
        self.end()
        self._thread.join(CLOSE_TIMEOUT_S)
        return not self._thread.is_alive() and not self._queue

    def _append(self, line: bytes) -> None:
        self._put_bytes += len(line)
        self._queue.append(line)

    def _run(self) -> None:
        """Write until ``close``; then once more, for what came before it."""
        while not self._ending.wait(INTERVAL_S):
            if not self._write_all():
                self._ending.wait(RETRY_S)
        self._write_all()
        self._files.close()

    def _write_all(self) -> bool:
        """Write everything that waits; return False when the disk refused."""
        while self._queue:
            lines = self._take()
            try:
                self._write(lines)
            except OSError as error:
                self.lost += len(lines)
                if not self._lost_here:
                    _log.warning("the journal cannot be written: %s", error)
                self._lost_here += len(lines)
                return False
        return True

    def _take(self) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        queue = self._queue
        while queue and size < CHUNK_BYTES:
            line = queue.popleft()
            size += len(line)
            taken.append(line)
        self._taken_bytes += size
        return taken

    def _write(self, lines: list[bytes]) -> None:
        files = self._files
        try:
            if files.full:
                files.next(self._head(files.number + 1) + b"\n" + self._in_force)
            if self._lost_here:
                lines = [encode(Gap(lines=self._lost_here)), *lines]
            files.append(b"\n".join(lines) + b"\n")
        finally:
            for line in lines:
                if line.startswith(INSTALL_START):
                    self._in_force = IN_FORCE_START + line[len(INSTALL_START) :] + b"\n"
        self._lost_here = 0
