"""The level-based loop: observe, plan, act, publish, order. It looks at the whole each time and remembers no event."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controlplane.controller import convert, observation
from controlplane.controller.ledger import Ledger
from controlplane.controller.nodes import NODE_LOST_S, NodeBoard
from controlplane.controller.numbers import Sequence
from controlplane.controller.topology_board import TopologyBoard
from controlplane.errors import ControlplaneError
from controlplane.planning.actions import Blocked
from controlplane.planning.carry_out import carry_out
from controlplane.planning.clocks import Clock, advance
from controlplane.planning.phase import published
from controlplane.planning.plan import plan
from controlplane.planning.world import Phase, Record, View
from dataplane import names
from dataplane.pb import node_pb2, topology_pb2

#: Seconds between two looks at least: a burst of reports costs one look.
LOOK_INTERVAL_S = 0.02
#: Seconds between two looks at most, though nothing was heard: bounds what a missed wake-up can cost.
LOOK_AT_LEAST_EVERY_S = 10.0
#: Seconds until a look that failed (a full disk, above all) is tried again.
RETRY_S = 1.0
#: Bounds of the histogram of looks, in seconds: from a look that changes nothing to one that waits for a slow disk.
DURATIONS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What the loop has done since it started, for metrics.

    ``seconds`` is the time spent in looks; ``within`` counts the looks of at most DURATIONS_S seconds each.
    ``roll_backs`` counts the configurations that a gateway refused.
    """

    looks: int = 0
    actions: int = 0
    failures: int = 0
    roll_backs: int = 0
    seconds: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * len(DURATIONS_S))

    def add_look(self, seconds: float) -> None:
        """Count one look."""
        self.looks += 1
        self.seconds += seconds
        for place, bound in enumerate(DURATIONS_S):
            self.within[place] += seconds <= bound


@dataclass(frozen=True, slots=True)
class Standing:
    """The phase that is published of one incarnation, and since when (monotonic seconds)."""

    generation: int
    phase: Phase
    since_s: float


class Reconciler:
    """Makes the world follow the spec.

    What it does when it cannot see:

    - After its own start it publishes and orders nothing until each node that holds replicas was heard, or NODE_LOST_S
      have passed and at least one was. Routers and gateways keep what they have, so a restart changes nothing.
    - A node that is silent for NODE_LOST_S is lost: its replicas are published as FAILED. None of them is started
      elsewhere, because the node may still run them; when it is back, its reports decide.
    - When every node is lost at once, it is the controller that is blind: the phases that were published last stay.
      On one machine, a dead node agent therefore ends no traffic; HAProxy's own checks still do.
    """

    def __init__(
        self, ledger: Ledger, nodes: NodeBoard, board: TopologyBoard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger = ledger
        self.nodes = nodes
        self.board = board
        self.counts = Counts()
        self.clocks: dict[str, Clock] = {}
        self.standing: dict[str, Standing] = {}
        self.blocked: tuple[Blocked, ...] = ()
        self.looked_at_s = clock()
        self._clock = clock
        self._started_s = clock()
        self._inherited = False
        self._numbers = Sequence(ledger.store, "topology")
        self._order_numbers = Sequence(ledger.store, "orders")
        self._wake = asyncio.Event()
        self._out_since: dict[str, int] = {}
        self._errors: dict[str, str] = {}

    def wake(self) -> None:
        """Ask for a look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled. No failure ends the loop."""
        self._inherited = bool(self.ledger.records)
        while True:
            self._wake.clear()
            wait_s = RETRY_S
            began_s = self._clock()
            try:
                wait_s = await self.look()
            except ControlplaneError as error:
                self.counts.failures += 1
                self.ledger.events.add("controller", error.code, str(error))
                _log.warning("look failed: %s: %s", error.code, error)
            except Exception:
                self.counts.failures += 1
                _log.exception("look failed")
            self.looked_at_s = self._clock()
            self.counts.add_look(self.looked_at_s - began_s)
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                await asyncio.wait_for(self._wake.wait(), max(wait_s, 0.0))
            except TimeoutError:
                pass

    async def look(self) -> float:
        """Look once and do what is due; return the seconds until the next look is needed at the latest."""
        failure: ControlplaneError | None = None
        async with self.ledger.lock:
            self._expect_nodes()
            now_s = self._clock()
            view = self._view()
            self._tell_nodes(view)
            self.clocks = advance(self.clocks, self.ledger.records.values(), view.replicas, now_s)
            wake_s: float | None = None
            try:
                wake_s = await self._act(view, now_s)
            except ControlplaneError as error:
                failure = error
            # Acting made records of new generations: what was seen of the old ones says nothing of them.
            view = self._view()
            self.clocks = advance(self.clocks, self.ledger.records.values(), view.replicas, now_s)
            if self._settled(view):
                await self._publish(view, now_s)
                await self._order()
            records = self.ledger.records.values()
            self.nodes.attentive = any(record.draining or record.stopping for record in records)
            if failure is None:
                await self.ledger.store_events()
        if failure is not None:
            raise failure
        times = [t - self._clock() for t in (wake_s, self.nodes.next_loss_s()) if t is not None]
        return min([LOOK_AT_LEAST_EVERY_S, *times])

    def view(self) -> View:
        """Return what is known of every record now."""
        return self._view()

    def now_s(self) -> float:
        """Return the time of the clock that the loop goes by."""
        return self._clock()

    def _expect_nodes(self) -> None:
        expected = {record.node for record in self.ledger.records.values()}
        if self.ledger.desired is not None:
            expected.update(node.name for node in self.ledger.desired.nodes)
        self.nodes.expect(expected)

    def _view(self) -> View:
        records = self.ledger.records.values()
        return observation.view(records, self.nodes, self._out_since, self.ledger.drained_nodes)

    def _tell_nodes(self, view: View) -> None:
        events = self.ledger.events
        for name, state in self.nodes.nodes.items():
            lost = name in view.lost_nodes
            if lost and not state.was_lost:
                events.add(f"node/{name}", "node_lost", f"no report for {NODE_LOST_S:g} s")
            elif state.was_lost and not lost:
                events.add(f"node/{name}", "node_back", "reports again")
            state.was_lost = lost
        for _, report in self.nodes.gateways():
            if report.error and self._errors.get(report.gateway) != report.error:
                events.add(f"gateway/{report.gateway}", "apply_rolled_back", report.error)
                self.counts.roll_backs += 1
            self._errors[report.gateway] = report.error

    async def _act(self, view: View, now_s: float) -> float | None:
        """Carry out one plan: stored first, then ordered. Returns when time alone asks for another look."""
        ledger = self.ledger
        if ledger.desired is None or ledger.cluster is None:
            return None
        step = plan(ledger.desired, ledger.records.values(), view, self.clocks, now_s)
        for problem in step.blocked:
            if problem not in self.blocked:
                ledger.events.add(problem.subject, problem.reason, problem.message)
        self.blocked = step.blocked
        if not step.actions:
            return step.wake_s
        outcome = carry_out(step.actions, ledger.records, ledger.desired, self._highest_generation())
        records = dict(outcome.records)
        for name in outcome.launched:
            records[name] = replace(records[name], launch=convert.launch(ledger.cluster, records[name]))
        await ledger.set_records(records, generation=outcome.generation)
        for action in step.actions:
            ledger.events.add(f"replica/{action.replica}", action.verb, action.detail())
        self.counts.actions += len(step.actions)
        return now_s

    def _highest_generation(self) -> int:
        """Count what nodes report too: a store that was lost must not repeat a generation that still runs."""
        reported = (e.generation for s in self.nodes.nodes.values() if s.report for e in s.report.engines)
        return max([self.ledger.generation, *reported])

    def _settled(self, view: View) -> bool:
        """Tell whether enough was heard since the start to publish; see the class."""
        if self.ledger.cluster is None:
            return False
        if self.board.current is not None or not self._inherited:
            return True
        holders = {record.node for record in self.ledger.records.values()}
        heard = {name for name in holders if (s := self.nodes.nodes.get(name)) and s.heard_at_s is not None}
        return heard == holders or (bool(heard) and self._clock() - self._started_s >= NODE_LOST_S)

    def _blind(self, view: View) -> bool:
        nodes = self.nodes.nodes.keys()
        return bool(nodes) and view.lost_nodes >= nodes

    def _phase(self, record: Record, view: View, *, blind: bool) -> Phase:
        before = self.standing.get(record.replica)
        if blind and not record.stopping:
            return before.phase if before and before.generation == record.generation else Phase.PENDING
        return published(record, view.replicas.get(record.replica), lost=record.node in view.lost_nodes)

    async def _publish(self, view: View, now_s: float) -> None:
        """Publish a topology when it differs from the last one in anything but number and time."""
        cluster = self.ledger.cluster
        assert cluster is not None
        records = list(self.ledger.records.values())
        blind = self._blind(view)
        phases = {record.replica: self._phase(record, view, blind=blind) for record in records}
        reports = {name: convert.engine_reports(state.report) for name, state in self.nodes.nodes.items()}
        replicas = []
        for record in records:
            report = reports.get(record.node, {}).get(record.replica)
            current = report if report is not None and report.generation == record.generation else None
            replicas.append(convert.replica(record, phases[record.replica], current, cluster))
        topology = convert.topology(cluster, records, replicas)
        if self.board.current is None or not _same(self.board.current, topology):
            topology.number = await self._numbers.take()
            topology.published_unix_ms = time.time_ns() // 1_000_000
            self._note_out_of_rotation(topology)
            self.board.publish(topology)
        self._tell_phases(records, phases, now_s)

    def _note_out_of_rotation(self, topology: topology_pb2.Topology) -> None:
        out: dict[str, int] = {}
        for replica in topology.replicas:
            if replica.state != topology_pb2.REPLICA_STATE_READY:
                out[replica.server] = self._out_since.get(replica.server, topology.number)
        self._out_since = out

    def _tell_phases(self, records: list[Record], phases: dict[str, Phase], now_s: float) -> None:
        standing: dict[str, Standing] = {}
        for record in records:
            phase = phases[record.replica]
            before = self.standing.get(record.replica)
            if before and (before.generation, before.phase) == (record.generation, phase):
                standing[record.replica] = before
                continue
            standing[record.replica] = Standing(record.generation, phase, now_s)
            server = names.server_name(record.replica, record.generation)
            text = self._why(record) or f"{server} is {phase}"
            self.ledger.events.add(f"replica/{record.replica}", f"replica_{phase}", text)
        self.standing = standing

    def _why(self, record: Record) -> str:
        report = convert.engine_reports(self._report(record.node)).get(record.replica)
        if report is None or report.generation != record.generation:
            return ""
        ended = f"exit code {report.exit_code}" if report.exited else ""
        return "; ".join(part for part in (report.detail, ended) if part)

    def _report(self, node: str) -> node_pb2.NodeReport | None:
        state = self.nodes.nodes.get(node)
        return state.report if state else None

    async def _order(self) -> None:
        """Hand each node its whole orders when they differ from the last ones; nodes of no concern get none."""
        ledger, topology = self.ledger, self.board.current
        assert topology is not None
        concerned = {record.node for record in ledger.records.values()}
        if ledger.desired is not None:
            concerned.update(node.name for node in ledger.desired.nodes)
        for name, state in self.nodes.nodes.items():
            if name not in concerned and state.orders is None:
                continue
            orders = convert.orders(name, ledger.records.values(), ledger.cluster, topology, ledger.keys.values())
            if state.orders is not None:
                orders.number = state.orders.number
                if orders == state.orders:
                    continue
            orders.number = await self._order_numbers.take()
            self.nodes.send(name, orders)


def _same(old: topology_pb2.Topology, new: topology_pb2.Topology) -> bool:
    copy = topology_pb2.Topology()
    copy.CopyFrom(old)
    copy.number = 0
    copy.published_unix_ms = 0
    return copy == new
