"""Start, adopt and stop processes of this machine, with nothing but the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.launchers import logs, procfs, session
from dataplane.launchers.base import LaunchError, ProcessSpec, RunningProcess
from dataplane.launchers.environment import base_environment
from dataplane.launchers.records import ProcessRecord, Records
from dataplane.launchers.spawn import spawn
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)

#: A killed process ends once the kernel has freed what it holds.
_KILL_TIMEOUT_S = session.CLEAR_TIMEOUT_S


@dataclass(slots=True, eq=False)
class _Watch:
    """A process whose end is awaited. ``descriptor`` is its pidfd: it can never mean another process."""

    process: RunningProcess
    descriptor: int
    own_child: bool
    cleared: asyncio.Future[None]
    told_to_end: bool = False
    clearing: asyncio.Task[None] | None = field(default=None)


class LocalLauncher:
    """Processes in sessions of their own, which outlive their starter and are found again by their records.

    Every process is written down before its program runs, so none can be lost. Signals go through pidfds, so a reused
    pid is never signalled. When a process ends, what is left of its session is killed: an engine's workers hold its
    port and its accelerator. A child that leaves the session (setsid) is not followed.

    ``roles`` limits what ``adopt`` takes; None: all. ``close`` lets go of all processes, which run on.
    """

    def __init__(self, state: StateDir, roles: Collection[str] | None = None) -> None:
        self._state = state
        self._roles = roles
        self._records = Records(state)
        self._watches: dict[str, _Watch] = {}
        self._capping: asyncio.Task[None] | None = None

    async def start(self, spec: ProcessSpec) -> RunningProcess:
        """Start a process; see Launcher. Its log is ``<state>/logs/<name>.log``, the one before it ``.log.1``."""
        await self._await_cleared(spec.name)
        before = self._records.read(spec.name)
        if before is not None and before.lives():
            raise LaunchError(f"{spec.name} already runs as pid {before.pid}")
        log_path = self._state.logs / f"{spec.name}.log"
        written: list[ProcessRecord] = []

        def record(pid: int) -> None:
            found = procfs.stat(pid)
            if found is None:
                raise LaunchError(f"{spec.name} ended before it could be recorded")
            written.append(_record(spec, found, log_path))
            self._records.write(written[0])

        try:
            log = logs.open_fresh(log_path)
            try:
                pid = spawn(spec.argv, base_environment(os.environ) | dict(spec.env), log, record)
            finally:
                os.close(log)
        except OSError as error:
            raise LaunchError(f"{spec.name} cannot be started: {error}") from error
        return self._watch(written[0], os.pidfd_open(pid), own_child=True).process

    async def adopt(self) -> list[RunningProcess]:
        """Return what has a record and lives; kill what ended processes left in their sessions."""
        for record in self._records.all():
            if self._roles is not None and record.role not in self._roles:
                continue
            watch = self._watches.get(record.name)
            if watch is not None and watch.process.alive:
                continue
            descriptor = _open_if_alive(record)
            if descriptor is not None:
                self._watch(record, descriptor, own_child=False)
            elif watch is None and record.same_boot:
                await session.clear(record.pid, record.start_ticks, Path(record.log))
        return [watch.process for watch in self._watches.values() if watch.process.alive]

    async def stop(self, process: RunningProcess, grace_s: float) -> None:
        """End a process and all of its session, then forget its record; see Launcher."""
        watch = self._watches.get(process.name)
        if watch is not None and watch.process is process:
            if process.alive:
                self._signal(watch, signal.SIGTERM)
                await asyncio.wait([process.exited], timeout=max(0.0, grace_s))
            if process.alive:
                _log.warning("%s (pid %d) did not end within %.1f s: killing it", process.name, process.pid, grace_s)
                self._signal(watch, signal.SIGKILL)
                await asyncio.wait([process.exited], timeout=_KILL_TIMEOUT_S)
            if process.alive:
                raise LaunchError(f"{process.name} (pid {process.pid}) cannot be killed")
            await asyncio.shield(watch.cleared)
            if self._watches.get(process.name) is watch:
                del self._watches[process.name]
        self._records.remove(process.name, process.pid, process.start_ticks)

    def close(self) -> None:
        """Let go of every process; they run on and can be adopted."""
        if self._capping is not None:
            self._capping.cancel()
        for watch in self._watches.values():
            if watch.clearing is not None:
                watch.clearing.cancel()
            self._release(watch)
        self._watches.clear()

    def _watch(self, record: ProcessRecord, descriptor: int, *, own_child: bool) -> _Watch:
        loop = asyncio.get_running_loop()
        process = RunningProcess(
            name=record.name,
            role=record.role,
            pid=record.pid,
            start_ticks=record.start_ticks,
            labels=dict(record.labels),
            log=Path(record.log),
            started_unix_ms=record.started_unix_ms,
            exited=loop.create_future(),
        )
        watch = _Watch(process, descriptor, own_child, loop.create_future())
        self._watches[record.name] = watch
        loop.add_reader(descriptor, self._ended, watch)
        if self._capping is None:
            self._capping = loop.create_task(self._cap_logs())
        return watch

    def _ended(self, watch: _Watch) -> None:
        """Called once, when the kernel says that the process has ended."""
        process = watch.process
        asyncio.get_running_loop().remove_reader(watch.descriptor)
        # Our own child stays a zombie until its session is cleared: that keeps its pid, the session's number, its own.
        code = _peek_exit_code(process.pid) if watch.own_child else None
        process.exited.set_result(code)
        watch.clearing = asyncio.get_running_loop().create_task(self._clear(watch))

    async def _clear(self, watch: _Watch) -> None:
        process = watch.process
        proof = None if watch.own_child else process.log
        if not await session.clear(process.pid, process.start_ticks, proof):
            _log.error("processes of %s (session %d) cannot be killed", process.name, process.pid)
        self._release(watch)
        watch.cleared.set_result(None)

    def _release(self, watch: _Watch) -> None:
        """Close the pidfd and reap the child if it has ended."""
        if watch.descriptor < 0:
            return
        asyncio.get_running_loop().remove_reader(watch.descriptor)
        os.close(watch.descriptor)
        watch.descriptor = -1
        if watch.own_child and watch.process.exited.done():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(watch.process.pid, os.WNOHANG)

    def _signal(self, watch: _Watch, number: signal.Signals) -> None:
        if watch.descriptor < 0 or (number is signal.SIGTERM and watch.told_to_end):
            return  # a second SIGTERM makes some servers drop their streams
        watch.told_to_end = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(watch.descriptor, number)

    async def _await_cleared(self, name: str) -> None:
        watch = self._watches.get(name)
        if watch is not None and not watch.process.alive:
            await asyncio.shield(watch.cleared)

    async def _cap_logs(self) -> None:
        while True:
            await asyncio.sleep(logs.CAP_INTERVAL_S)
            for watch in list(self._watches.values()):
                try:
                    if await asyncio.to_thread(logs.cap, watch.process.log):
                        _log.info("the log of %s passed its cap and was cut", watch.process.name)
                except OSError as error:
                    _log.warning("the log of %s cannot be capped: %s", watch.process.name, error)


def _record(spec: ProcessSpec, found: procfs.ProcessStat, log: Path) -> ProcessRecord:
    return ProcessRecord(
        name=spec.name,
        role=spec.role,
        pid=found.pid,
        start_ticks=found.start_ticks,
        argv=spec.argv,
        log=str(log),
        started_unix_ms=time.time_ns() // 1_000_000,
        labels=dict(spec.labels),
        boot_id=procfs.boot_id(),
    )


def _open_if_alive(record: ProcessRecord) -> int | None:
    """Return a pidfd of the record's process; None when it has ended or its pid is another's."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return None
    # The identity is checked after the descriptor is open: from here on it cannot become another's.
    if record.lives() and not select.select([descriptor], [], [], 0)[0]:
        return descriptor
    os.close(descriptor)
    return None


def _peek_exit_code(pid: int) -> int | None:
    """Return the exit code of an ended child and leave it to be reaped; None when somebody else reaped it."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
