"""The engines of this node: carries out what is decided and watches what runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from dataplane.engines.command import EngineSite
from dataplane.errors import DataplaneError
from dataplane.launchers.base import Launcher, LaunchError, RunningProcess
from dataplane.launchers.records import Records
from dataplane.node import adoption, convert
from dataplane.node.decide import Action, Forget, Life, Probe, Start, Stop, decide
from dataplane.node.incarnation import Incarnation
from dataplane.node.probing import probe_once
from dataplane.pb import node_pb2

_log = logging.getLogger(__name__)

#: Processes that are created at once. Only their creation counts: ranks of one group become ready together or not
#: at all, so waiting for one before the next is created would wait for ever.
MAX_STARTS_AT_ONCE = 8
#: Between tries to create a process that cannot be (a full disk): doubles from the first to the last.
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 2.0


class Engines:
    """All incarnations of this node's replicas.

    ``changed`` is called after every change that a report shows; ``lost`` with the server's name the moment its process
    has ended unasked. An engine that crashed is never started again here: the controller orders a new generation.
    """

    def __init__(
        self,
        launcher: Launcher,
        records: Records,
        site: EngineSite,
        changed: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._launcher = launcher
        self._records = records
        self._site = site
        self._changed = changed
        self._lost = lost
        self._table: dict[str, Incarnation] = {}
        self._orders: dict[str, node_pb2.EngineOrder] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._creating = asyncio.Semaphore(MAX_STARTS_AT_ONCE)

    async def adopt(self, running: list[RunningProcess]) -> None:
        """Take over what runs, untouched and probed once, and remember what ended meanwhile."""
        for process in running:
            engine = adoption.adopted(process)
            if engine is not None:
                self._table[engine.replica] = engine
        found = list(self._table.values())
        await asyncio.gather(*(probe_once(engine) for engine in found))
        for engine in found:
            self._follow(engine)
        for engine in adoption.ended(self._records.all()):
            self._table.setdefault(engine.replica, engine)

    def reconcile(self, orders: node_pb2.NodeOrders) -> None:
        """Begin everything that these orders and the present state call for. Raises InvalidOrders or InvalidName."""
        wanted = convert.wanted(orders)
        self._orders = {order.launch.replica: order for order in orders.engines}
        for action in decide(wanted, {name: engine.held for name, engine in self._table.items()}):
            _log.info("%s %s generation %d", type(action).__name__.lower(), action.replica, action.generation)
            self._begin(action)

    def reports(self) -> list[node_pb2.EngineReport]:
        """Return one report for each replica that is here."""
        return [convert.engine_report(self._table[name]) for name in sorted(self._table)]

    def dead_servers(self) -> list[str]:
        """Return the servers whose process has ended."""
        return [engine.server for engine in self._table.values() if engine.life is Life.ENDED]

    async def close(self) -> None:
        """Stop watching; every engine runs on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, action: Action) -> None:
        match action:
            case Start(replica, generation):
                engine = Incarnation(replica, generation, (), Life.STARTING, self._orders[replica].stop_grace_s)
                self._table[replica] = engine
                self._spawn(self._start(engine, self._orders[replica]))
            case Probe(replica, generation):
                engine = Incarnation(replica, generation, (), Life.PROBED)
                self._table[replica] = engine
                self._spawn(self._watch(engine, self._orders[replica]))
            case Stop(replica, _, grace_s):
                engine = self._table[replica]
                engine.life = Life.STOPPING
                self._spawn(self._stop(engine, grace_s))
            case Forget(replica, _):
                self._spawn(self._forget(self._table.pop(replica)))
        self._changed()

    async def _start(self, engine: Incarnation, order: node_pb2.EngineOrder) -> None:
        pause = FIRST_RETRY_S
        try:
            spec = adoption.process_spec(engine, order, self._site)
            engine.endpoints = convert.endpoints(order)
        except DataplaneError as error:
            engine.life, engine.detail = Life.ENDED, str(error)  # not an exit: there was no process
            self._changed()
            return
        while True:
            try:
                async with self._creating:
                    engine.runs(await self._launcher.start(spec))
                self._follow(engine)
                break
            except LaunchError as error:
                _log.error("%s", error)
                engine.detail = str(error)
                self._changed()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_S)
            ordered = self._orders.get(engine.replica)
            if ordered is None or ordered.launch.generation != engine.generation:
                engine.life = Life.ENDED
                break
        self._changed()

    def _follow(self, engine: Incarnation) -> None:
        """Wait for its end and probe until then."""
        assert engine.process is not None, engine.server  # there is one since ``runs``
        engine.process.exited.add_done_callback(lambda exited: self._on_exit(engine, exited))
        self._spawn(self._watch(engine, None))

    def _on_exit(self, engine: Incarnation, exited: asyncio.Future[int | None]) -> None:
        if exited.cancelled() or engine.life is not Life.RUNNING:
            return  # being stopped: that is told when its session is gone too
        engine.ended(exited.result())
        _log.warning("%s %s", engine.server, engine.detail)
        self._lost(engine.server)
        self._changed()

    async def _stop(self, engine: Incarnation, grace_s: float) -> None:
        process = engine.process
        assert process is not None, engine.server  # only RUNNING engines are stopped
        try:
            await self._launcher.stop(process, grace_s)
        except (LaunchError, OSError) as error:
            _log.error("%s", error)
            engine.detail = str(error)
            await asyncio.sleep(LAST_RETRY_S)
        if process.alive:
            engine.life = Life.RUNNING  # it is decided again
        else:
            engine.ended(process.exited.result(), "stopped as ordered")
        self._changed()

    async def _forget(self, engine: Incarnation) -> None:
        try:
            if engine.process is not None:
                await self._launcher.stop(engine.process, 0.0)
            elif engine.record is not None:
                self._records.remove(engine.replica, engine.record.pid, engine.record.start_ticks)
        except (LaunchError, OSError) as error:
            _log.error("the record of %s stays: %s", engine.server, error)

    async def _watch(self, engine: Incarnation, order: node_pb2.EngineOrder | None) -> None:
        """Probe for as long as it is there."""
        if order is not None:
            try:
                engine.endpoints = convert.endpoints(order)
            except DataplaneError as error:
                engine.detail = str(error)
                self._changed()
                return
        while engine.probed and self._table.get(engine.replica) is engine:
            if await probe_once(engine):
                self._changed()
            await asyncio.sleep(engine.readiness.next_probe_s)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("the work on an engine failed", exc_info=task.exception())
