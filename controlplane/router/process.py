"""The router process: what it starts, in which order, and how it ends.

HAProxy waits for the SPOP socket, so that comes first, with the topology from disk; gRPC takes longer to import than
all of that and is loaded in a thread while the first decisions are made.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import uvloop

from controlplane.router import unix_sockets
from controlplane.router.counters import Counters
from controlplane.router.decisions import Decisions
from controlplane.router.journal import JournalledCore
from controlplane.router.journal_run import FOLDER_NAME as JOURNAL_FOLDER
from controlplane.router.journal_run import Journals
from controlplane.router.log_feed import LogFeed, lengthen_queue
from controlplane.router.precise.loading import PreciseModels
from controlplane.router.reconciliation import Reconciliation
from controlplane.router.report_feed import ReportFeed
from controlplane.router.reports import Reports
from controlplane.router.server import SpopServer
from controlplane.router.telemetry import EngineTelemetry
from controlplane.router.topology import InstalledTopology
from controlplane.router.topology_file import FILE_NAME
from controlplane.routing import fleet
from controlplane.routing.core import RoutingCore
from dataplane.gateway.waits import slice_s
from dataplane.state_dir import StateDir, default_root

_log = logging.getLogger(__name__)

LOCK_NAME = "router.lock"
#: Seconds that a router that is ending may hold its lock while its successor waits.
LOCK_TIMEOUT_S = 1.0
#: Seconds until the gRPC socket is tried again when it could not be made.
GRPC_RETRY_S = 5.0
#: The youngest generation is looked through every so many new containers, the middle one every 20th time; the oldest,
#: which holds the prefix index and would take longer than a decision may, practically never: nothing on the path of a
#: decision makes a cycle.
GC_THRESHOLDS = (20_000, 20, 1_000_000)


#: glibc gives a large block back to the kernel when it is freed and takes it again, page by page, for the next body:
#: some 60 us for each. These keep up to 8 MB instead (mallopt(3): M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD).
MALLOC_SETTINGS = ((-1, 8 << 20), (-2, 1 << 20), (-3, 4 << 20))


class AlreadyRunning(Exception):
    """Another router owns this state directory."""


class Router:
    """One router over one state directory."""

    def __init__(self, state: StateDir, controller: str, long_log_queue: bool) -> None:
        self.state = state
        self.long_log_queue = long_log_queue
        self.controller = controller
        self.counters = Counters()
        self.journals = Journals(state.router / JOURNAL_FOLDER)
        self.core: RoutingCore = JournalledCore(follow=self.journals.follow)
        self.clock = time.time
        self.read_log: Callable[[], None] = _nothing
        self.decisions = Decisions(self.core, self.clock, self.counters)
        self.precise = PreciseModels(self.decisions, state)
        self.reports = Reports(self.core, self.clock)
        self.telemetry = EngineTelemetry(self.core.observed, self.core.cache_cleared, self.core.loads, self.clock)
        self.installed = InstalledTopology(state.router / FILE_NAME, self._install, self.counters)

    def _install(self, topology: fleet.Topology) -> None:
        self.core.install(topology, self.clock())
        self.reports.servers = {replica.server.encode() for replica in topology.replicas}
        self.telemetry.take(topology.replicas)
        self.decisions.topology_changed()
        self.precise.install(topology)
        self.decisions.waiting.slice_s = slice_s(longest_timeout_s(topology))

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``. Raises OSError when a socket cannot be made."""
        self.installed.load()
        async with AsyncExitStack() as ending:
            ending.push_async_callback(self.precise.close)
            ending.callback(self.journals.close)
            log_socket = self._bind(ending, self.state.log_socket, socket.SOCK_DGRAM)
            report_socket = self._bind(ending, self.state.reports_socket, socket.SOCK_DGRAM)
            report_feed = ReportFeed(report_socket, self.reports.datagram, self.counters)
            log_feed = LogFeed(log_socket, report_feed.before(self.core.finished), self.clock, self.counters)
            self.read_log = log_feed.drain
            server = SpopServer(self.decisions.answer, log_feed.catch_up, self.counters)
            await server.start(self._bind(ending, self.state.spop_socket, socket.SOCK_STREAM))
            ending.push_async_callback(server.stop)
            ending.callback(self.decisions.waiting.stop)
            log_feed.start(self.long_log_queue)
            ending.callback(log_feed.stop)
            report_feed.start(self.long_log_queue)
            ending.callback(report_feed.stop)
            _log.info("serving, topology %d", self.installed.number)
            reconciliation = Reconciliation(self.state, self.core.reconcile, self.clock, self.counters)
            for work in (reconciliation.run(), self.telemetry.run(), self._serve_grpc()):
                ending.push_async_callback(_cancelled, asyncio.create_task(work))
            await stop.wait()
            await self.installed.saved()

    def _bind(self, ending: AsyncExitStack, path: Path, kind: socket.SocketKind) -> socket.socket:
        bound = unix_sockets.bind(path, kind)
        ending.callback(unix_sockets.remove, path, unix_sockets.inode(path))
        return bound

    async def _serve_grpc(self) -> None:
        """Serve RoutingService and follow the controller; while that fails, decisions go on without it."""
        while True:
            try:
                await asyncio.to_thread(importlib.import_module, "controlplane.router.grpc_side")
                from controlplane.router.grpc_side import serve

                _settle_garbage()
                await serve(self)
            except Exception:
                _log.exception("gRPC is not served; again in %.0f s", GRPC_RETRY_S)
            await asyncio.sleep(GRPC_RETRY_S)


def longest_timeout_s(topology: fleet.Topology) -> float:
    """Return the longest time that any request may wait, as HAProxy's configuration knows it; 0: none waits."""
    admissions = [model.admission for model in topology.models if model.admission is not None]
    return max((timeout_s for one in admissions for timeout_s in one.timeouts_s), default=0.0)


def _nothing() -> None:
    """Stand in for the log until its socket is there."""


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _settle_garbage() -> None:
    """Leave what is loaded by now out of every later collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _keep_memory() -> None:
    """Let the allocator keep what it frees; where there is no glibc, nothing changes."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in MALLOC_SETTINGS:
            mallopt(name, value)


def _lock(state: StateDir) -> int:
    """Take the lock that the kernel gives back however the process ends. Raises AlreadyRunning."""
    descriptor = os.open(state.router / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise AlreadyRunning(f"a router already runs in {state.root}") from None
            time.sleep(0.02)


async def _serve(state: StateDir, controller: str, long_log_queue: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Router(state, controller, long_log_queue).run(stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the router; return the exit code."""
    parser = argparse.ArgumentParser(prog="slipstream router", description="HAProxy asks it which replica answers.")
    parser.add_argument("--state-dir", type=Path, default=None, help="default: $SLIPSTREAM_STATE_DIR")
    parser.add_argument("--controller", default="", help="gRPC target; default: the state directory's controller.sock")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s router: %(message)s")
    state = StateDir((parsed.state_dir or default_root()).absolute())
    try:
        state.create()
        lock = _lock(state)
        _keep_memory()
        controller = parsed.controller or f"unix:{state.controller_socket}"
        uvloop.run(_serve(state, controller, lengthen_queue()))
    except (AlreadyRunning, OSError, ValueError) as error:
        _log.error("%s", error)
        return 1
    os.close(lock)
    return 0
