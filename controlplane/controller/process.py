"""One controller with all its parts: made, started, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from controlplane.controller.admin_service import AdminService
from controlplane.controller.changes import Changes
from controlplane.controller.events import EventLog
from controlplane.controller.ledger import Ledger
from controlplane.controller.node_service import NodeService
from controlplane.controller.nodes import NodeBoard
from controlplane.controller.reconciler import Reconciler
from controlplane.controller.server import ControllerServer
from controlplane.controller.topology_board import TopologyBoard
from controlplane.controller.topology_service import TopologyService
from controlplane.controller.views import Views
from controlplane.store.base import Store
from dataplane.state_dir import StateDir

#: Seconds that open streams get when the controller ends: agents and routers reconnect by themselves.
STOP_GRACE_S = 0.5

_log = logging.getLogger(__name__)


class Controller:
    """Store, reconcile loop and gRPC server of one cluster."""

    def __init__(self, state: StateDir, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._store = store
        self._looking: asyncio.Task[None] | None = None
        self.events = EventLog(lambda: time.time_ns() // 1_000_000)
        self.ledger = Ledger(store, self.events)
        self.board = TopologyBoard()
        self.nodes = NodeBoard(clock, self._wake)
        self.reconciler = Reconciler(self.ledger, self.nodes, self.board, clock)
        self.views = Views(self.ledger, self.reconciler)
        self.changes = Changes(self.ledger, self.reconciler)
        self._server = ControllerServer(
            AdminService(self.ledger, self.changes, self.views),
            NodeService(self.nodes),
            TopologyService(self.board),
        )

    async def start(self) -> None:
        """Open the store, serve, begin to look. Raises Conflict when another controller has the store."""
        contents = await self.ledger.open()
        _log.info("revision %d, %d replicas", self.ledger.revision, len(contents.records))
        await self._server.start(self._state.controller_socket)
        self._looking = asyncio.create_task(self.reconciler.run())

    def _wake(self) -> None:
        self.reconciler.wake()

    @property
    def alive(self) -> bool:
        """Tell whether the reconcile loop runs."""
        return self._looking is not None and not self._looking.done()

    async def stop(self) -> None:
        """End everything that ``start`` began; engines, gateways and routers keep running."""
        await self._server.stop(STOP_GRACE_S)
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        await self._store.close()
