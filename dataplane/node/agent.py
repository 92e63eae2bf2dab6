"""The agent: orders in, what runs made to fit them, reports out."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass

from dataplane.engines.command import EngineSite
from dataplane.errors import DataplaneError
from dataplane.gateway.applier import Gateway
from dataplane.launchers.local import LocalLauncher
from dataplane.launchers.records import Records
from dataplane.node import convert
from dataplane.node.adoption import ROLE
from dataplane.node.engine_path import make_engine_path
from dataplane.node.engines import Engines
from dataplane.node.gateway_keeper import ROLE as GATEWAY_ROLE
from dataplane.node.gateway_keeper import GatewayKeeper
from dataplane.node.link import ControllerLink
from dataplane.node.orders_file import OrdersFile
from dataplane.pb import node_pb2
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)

#: What is ordered is compared with what is there at least this often, whether or not anything was heard.
RECONCILE_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this agent is and whom it serves."""

    name: str
    address: str  # where gateways reach this node's engines
    controller: str  # gRPC target


class NodeAgent:
    """Carries out the newest orders it has, its controller there or not; ``run`` ends only when it is cancelled.

    Ending the agent ends nothing that it started: the next one adopts it.
    """

    def __init__(self, state: StateDir, identity: NodeIdentity) -> None:
        self._identity = identity
        self._state = state
        self._launcher = LocalLauncher(state, roles=(ROLE, GATEWAY_ROLE))
        self._file = OrdersFile(state)
        self._orders: node_pb2.NodeOrders | None = None
        self._changed = asyncio.Event()
        site = EngineSite(
            python=sys.executable, engine_path=str(make_engine_path(state)), reports=str(state.reports_socket)
        )
        self._gateway = GatewayKeeper(Gateway(state, self._launcher), self._on_change)
        self._engines = Engines(self._launcher, Records(state), site, self._on_change, self._gateway.server_lost)
        self._link = ControllerLink(identity.controller, self.report, self.take)

    async def run(self) -> None:
        """Adopt what runs, then serve."""
        running = await self._launcher.adopt()
        await self._gateway.adopt()
        await self._engines.adopt([process for process in running if process.role == ROLE])
        _log.info("adopted %s", ", ".join(process.name for process in running) or "nothing")
        kept = self._file.load()
        if kept is not None:
            self.take(kept)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._reconcile())
                tasks.create_task(self._gateway.run())
                tasks.create_task(self._link.run())
        finally:
            await self._engines.close()
            self._launcher.close()

    def take(self, orders: node_pb2.NodeOrders) -> None:
        """Make these the orders; those that cannot be carried out as a whole are refused and the last stay."""
        try:
            convert.wanted(orders)
        except DataplaneError as error:
            _log.error("orders %d are refused: %s", orders.number, error)
            return
        self._orders = orders
        self._file.save(orders)
        self._gateway.take(orders.gateway if orders.HasField("gateway") else None)
        self._on_change()

    async def report(self) -> node_pb2.NodeReport:
        """Return all that there is to tell."""
        return node_pb2.NodeReport(
            node=self._identity.name,
            address=self._identity.address,
            orders_number=0 if self._orders is None else self._orders.number,
            engines=self._engines.reports(),
            gateway=await self._gateway.report(),
            cpu_count=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            pid=os.getpid(),
        )

    def _on_change(self) -> None:
        self._changed.set()
        self._link.changed()

    async def _reconcile(self) -> None:
        while True:
            self._changed.clear()
            if self._orders is not None:
                self._engines.reconcile(self._orders)
                self._gateway.dead(self._engines.dead_servers())
            try:
                async with asyncio.timeout(RECONCILE_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue
