"""The topology that is installed: which snapshots are taken, and that the last one is kept on disk.

Which snapshot supersedes the one that is held
    Numbers grow with every change and are never reused in a cluster, so a lower one is old: a controller that lost
    its place and still talks, or a message that was delayed. It is refused, with two exceptions.

    * The cluster's name differs: numbers of two clusters cannot be compared, and the controller we were pointed at
      is the authority.
    * The snapshot was published later than the held one. Within one counter, later means higher; a later snapshot
      with a lower number (or with the same number and another content) therefore comes from a counter that began
      again: the controller's store was reset.

    A controller whose store was reset *and* whose clock went back is refused until its clock or its number passes
    ours. This is counted and logged; a router that starts without its ``topology.pb`` takes any snapshot.
    Because of the reset, the router always asks for the newest snapshot whatever its number (``after_number`` 0): with
    the number it holds, a controller that began again would stay silent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from controlplane.errors import ControlplaneError
from controlplane.router import convert, topology_file
from controlplane.router.counters import Counters
from controlplane.routing import fleet
from dataplane.pb.topology_pb2 import Topology

_log = logging.getLogger(__name__)


def supersedes(new: Topology, held: Topology | None) -> bool:
    """Return whether ``new`` takes the place of ``held``; the module's docstring says why."""
    if held is None or new.cluster != held.cluster:
        return True
    return new.number > held.number or new.published_unix_ms > held.published_unix_ms


class InstalledTopology:
    """The snapshot in use. ``install`` hands it to the routing core and may raise a ControlplaneError to refuse it."""

    def __init__(self, path: Path, install: Callable[[fleet.Topology], None], counters: Counters) -> None:
        self.held: Topology | None = None
        self.from_disk = False
        self.ready = asyncio.Event()  # set once something is installed
        self._heard_at_s = 0.0
        self._path = path
        self._install = install
        self._counters = counters
        self._unsaved: Topology | None = None
        self._saving: asyncio.Task[None] | None = None
        self._write_failed = False

    @property
    def number(self) -> int:
        """Number of the snapshot in use, 0 when there is none."""
        return 0 if self.held is None else self.held.number

    @property
    def age_s(self) -> float:
        """Seconds since the snapshot was published when it is from disk, else since it was received; 0: none."""
        if self.held is None:
            return 0.0
        if self.from_disk:
            return max(0.0, time.time() - self.held.published_unix_ms / 1000)
        return time.monotonic() - self._heard_at_s

    def load(self) -> bool:
        """Install what the last run left on disk; return whether there was something good."""
        try:
            topology = topology_file.read(self._path)
        except (topology_file.CorruptTopology, OSError) as error:
            _log.warning("the topology on disk is ignored: %s: %s", self._path, error)
            return False
        if topology is None or not self._try(topology):
            return False
        self.from_disk = True
        return True

    def offer(self, topology: Topology) -> bool:
        """Install what a controller published if it supersedes the one in use; return whether it was taken."""
        if self.held is not None and topology == self.held:
            self.from_disk = False
            self._heard_at_s = time.monotonic()
            return False
        if not supersedes(topology, self.held):
            self._counters.topologies_refused += 1
            _log.warning("topology %d is older than %d, which is in use: refused", topology.number, self.number)
            return False
        if not self._try(topology):
            return False
        self.from_disk = False
        self._heard_at_s = time.monotonic()
        self._unsaved = topology
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save())
        return True

    async def saved(self) -> None:
        """Wait until what is in use is on disk, or could not be written."""
        if self._saving is not None:
            await self._saving

    def _try(self, topology: Topology) -> bool:
        try:
            self._install(convert.topology(topology))
        except ControlplaneError as error:
            self._counters.topologies_refused += 1
            _log.warning("topology %d cannot be used: %s", topology.number, error)
            return False
        except Exception:  # a bug must neither end the watch nor keep the router from starting
            self._counters.topologies_refused += 1
            _log.exception("topology %d cannot be installed", topology.number)
            return False
        self.held = topology
        self.ready.set()
        self._counters.topologies_installed += 1
        return True

    async def _save(self) -> None:
        """Write the newest snapshot, again when a newer one came meanwhile; fsync waits in a thread."""
        try:
            while self._unsaved is not None:
                topology, self._unsaved = self._unsaved, None
                try:
                    await asyncio.to_thread(topology_file.write, self._path, topology)
                except OSError as error:
                    self._counters.topology_write_failures += 1
                    if not self._write_failed:
                        _log.warning("the topology cannot be kept on disk: %s", error)
                    self._write_failed = True
                else:
                    self._write_failed = False
        finally:
            self._saving = None
