"""Records of processes on disk: what lets a restarted agent find what it started (docs/contracts.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dataplane.launchers import procfs
from dataplane.launchers.atomic import write_atomically
from dataplane.launchers.base import PROCESS_NAME
from dataplane.names import checked
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)

#: A record is its command line and a few labels; anything larger is not ours.
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process as its starter wrote it down.

    ``boot_id`` names the machine's run in which it started; empty: not known. A process is this one only when pid,
    start and run are all the same, so a reused pid is never taken for it.
    """

    name: str
    role: str
    pid: int
    start_ticks: int
    argv: tuple[str, ...]
    log: str
    started_unix_ms: int
    labels: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""

    @property
    def same_boot(self) -> bool:
        """Whether the machine has not been restarted since."""
        return self.boot_id in {"", procfs.boot_id()}

    def lives(self) -> bool:
        """Whether its process still runs; False when it ended or its pid now is another's."""
        found = procfs.stat(self.pid) if self.same_boot else None
        return found is not None and found.start_ticks == self.start_ticks and not found.dead


class Records:
    """The records below one state directory. Reading never raises for one bad file; writing raises OSError."""

    def __init__(self, state: StateDir) -> None:
        self._folder = state.processes

    def write(self, record: ProcessRecord) -> None:
        """Write a record, whole or not at all."""
        write_atomically(self._path(record.name), msgspec.json.encode(record))

    def read(self, name: str) -> ProcessRecord | None:
        """Return the record of that name; None when there is none that can be read."""
        return self._read(self._path(name))

    def all(self) -> list[ProcessRecord]:
        """Return every record that can be read, by name; those of ended processes too."""
        found = (self._read(path) for path in sorted(self._folder.glob("[a-z0-9]*.json")))
        return [record for record in found if record is not None]

    def remove(self, name: str, pid: int, start_ticks: int) -> None:
        """Remove the record when it is of this very process."""
        record = self.read(name)
        if record is not None and (record.pid, record.start_ticks) == (pid, start_ticks):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{checked(PROCESS_NAME, name, 'process name')}.json"

    def _read(self, path: Path) -> ProcessRecord | None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_RECORD_BYTES + 1)
            if len(data) > MAX_RECORD_BYTES:
                raise ValueError("larger than a record can be")
            record = msgspec.json.decode(data, type=ProcessRecord)
            if record.name != path.stem or record.pid <= 1:
                raise ValueError("not the record of its name")
            return record
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            _log.warning("record %s is left alone: %s", path, error)
            return None
