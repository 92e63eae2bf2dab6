"""Keeps HAProxy running and true to the newest order; takes lost replicas out without asking anyone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from dataplane.errors import DataplaneError
from dataplane.gateway.applier import Gateway
from dataplane.launchers.base import RunningProcess
from dataplane.node.losses import servers_lost
from dataplane.node.server_counts import ServerCounts
from dataplane.pb import gateway_pb2, node_pb2

_log = logging.getLogger(__name__)

#: The role of HAProxy in process records (docs/contracts.md).
ROLE = "haproxy"
#: Between HAProxy's death and its start: doubles from the first to the last, which keeps "back within a second".
FIRST_RETRY_S = 0.02
LAST_RETRY_S = 0.6
#: A process that lived this long starts the pauses over.
LASTING_S = 10.0
#: An order that was refused or rolled back is tried again this often: the reason may have been a full disk.
REFUSED_RETRY_S = 5.0


class GatewayKeeper:
    """HAProxy's owner on this node. ``changed`` is called after every change that a report shows.

    Only the newest order is applied: those that came while one was being applied are skipped. Until a first order is
    heard a HAProxy that runs is kept as it is; ``take(None)`` says that the node is no gateway, and ends it.
    """

    def __init__(self, gateway: Gateway, changed: Callable[[], None]) -> None:
        self._gateway = gateway
        self._changed = changed
        self._heard = False
        self._order: gateway_pb2.GatewayOrder | None = None
        self._applied: gateway_pb2.GatewayOrder | None = None
        self._followed: RunningProcess | None = None
        self._dead: frozenset[str] = frozenset()
        self._out: frozenset[str] = frozenset()
        self._error = ""
        self._since = 0.0
        self._pause = FIRST_RETRY_S
        self._wake = asyncio.Event()
        self._urgent: set[asyncio.Task[None]] = set()
        self._counts = ServerCounts(gateway)

    async def adopt(self) -> None:
        """Take over a HAProxy that runs, untouched."""
        await self._gateway.adopt()
        self._follow()

    def take(self, order: gateway_pb2.GatewayOrder | None) -> None:
        """Make this the newest order; None: no gateway is wanted here."""
        if not self._heard or order != self._order:
            self._heard = True
            self._order = order
            self._wake.set()

    def server_lost(self, server: str) -> None:
        """Take a server and its gang out now: neither the controller nor the next order is waited for."""
        self._dead |= {server}
        task = asyncio.get_running_loop().create_task(self._take_out_now())
        self._urgent.add(task)
        task.add_done_callback(self._urgent.discard)

    def dead(self, servers: Collection[str]) -> None:
        """Tell of all servers whose processes have ended."""
        if frozenset(servers) != self._dead:
            self._dead = frozenset(servers)
            self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled; HAProxy runs on."""
        while True:
            self._wake.clear()
            try:
                wait = await self._step()
            except Exception:
                # Whatever an order provokes must not end the agent, which holds the engines too.
                _log.exception("the gateway's order cannot be carried out")
                self._tell("the order cannot be carried out; the agent's log says why")
                wait = REFUSED_RETRY_S
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def report(self) -> node_pb2.GatewayReport | None:
        """Return what the controller is told; None when there is no gateway here."""
        if self._order is None:
            return None
        return node_pb2.GatewayReport(
            gateway=self._order.gateway.name,
            topology_number=self._gateway.topology_number,
            pid=self._gateway.pid,
            ready=self._gateway.pid != 0 and self._applied is not None,
            error=self._error,
            servers=await self._counts.newest() if self._gateway.pid else [],
        )

    async def _step(self) -> float | None:
        """Do what is to be done; return after how many seconds to try again, None: when something happens."""
        if not self._heard:
            return None
        if self._order is None:
            await self._gateway.stop()
            self._applied = None
            return None
        if self._applied is not None and not self._gateway.pid:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LAST_RETRY_S)
            # What served last comes back first: the newest order may be one that cannot be applied.
            if not await self._apply(self._applied):
                return 0.0
        if self._order is not self._applied and not await self._apply(self._order):
            return REFUSED_RETRY_S
        await self._take_out()
        return None

    async def _apply(self, order: gateway_pb2.GatewayOrder) -> bool:
        try:
            await self._gateway.apply(order)
        except (DataplaneError, OSError) as error:
            self._tell(str(error))
            return False
        finally:
            self._follow()
        self._applied, self._out = order, frozenset()
        _log.info("topology %d is applied", order.topology.number)
        self._tell("")
        return True

    async def _take_out(self) -> None:
        if self._order is None or not self._dead - self._out:
            return
        dead = self._dead
        lost = servers_lost(self._order.topology, dead)
        if lost:
            _log.warning("taking out %s", ", ".join(lost))
            await self._gateway.set_maintenance(lost)
            self._changed()
        self._out = dead

    async def _take_out_now(self) -> None:
        try:
            await self._take_out()
        except (DataplaneError, OSError) as error:
            _log.error("lost servers are not yet taken out: %s", error)
            self._wake.set()  # tried again in its turn

    def _follow(self) -> None:
        process = self._gateway.process
        if process is not None and process is not self._followed:
            self._followed = process
            self._since = asyncio.get_running_loop().time()
            process.exited.add_done_callback(lambda exited: self._on_exit(process, exited))

    def _on_exit(self, process: RunningProcess, exited: asyncio.Future[int | None]) -> None:
        if not exited.cancelled() and process is self._gateway.process:
            _log.error("HAProxy (pid %d) ended: %s", process.pid, exited.result())
            if asyncio.get_running_loop().time() - self._since > LASTING_S:
                self._pause = FIRST_RETRY_S
            self._changed()
            self._wake.set()

    def _tell(self, error: str) -> None:
        if error:
            _log.error("gateway: %s", error)
        self._error = error
        self._changed()
