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
from controlplane.controller.publisher import Publisher
from controlplane.controller.topology_board import TopologyBoard
from controlplane.errors import ControlplaneError
from controlplane.planning.actions import Blocked
from controlplane.planning.carry_out import carry_out
from controlplane.planning.clocks import Clock, advance
from controlplane.planning.plan import plan
from controlplane.planning.world import View

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


class Reconciler:
    """Makes the world follow the spec.

    A node that is silent for NODE_LOST_S is lost: its replicas are published as FAILED. None of them is started
    elsewhere, because the node may still run them; when it is back, its reports decide. What is told to others when
    too little is heard: see Publisher.
    """

    def __init__(
        self, ledger: Ledger, nodes: NodeBoard, board: TopologyBoard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger = ledger
        self.nodes = nodes
        self.board = board
        self.counts = Counts()
        self.clocks: dict[str, Clock] = {}
        self.blocked: tuple[Blocked, ...] = ()
        self.looked_at_s = clock()
        self.publisher = Publisher(ledger, nodes, board, clock)
        self._clock = clock
        self._failing = ""
        self._wake = asyncio.Event()
        self._errors: dict[str, str] = {}

    def wake(self) -> None:
        """Ask for a look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled. No failure ends the loop."""
        self.publisher.inherited = bool(self.ledger.records)
        while True:
            self._wake.clear()
            wait_s = RETRY_S
            began_s = self._clock()
            try:
                wait_s = await self.look()
                self._tell_failure("", "")
            except ControlplaneError as error:
                self.counts.failures += 1
                self._tell_failure(error.code, str(error))
            except Exception:
                self.counts.failures += 1
                _log.exception("look failed")
            self.looked_at_s = self._clock()
            self.counts.add_look(self.looked_at_s - began_s)
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes together with the wake-up.
                async with asyncio.timeout(max(wait_s, 0.0)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def look(self) -> float:
        """Look once and do what is due; return the seconds until the next look is needed at the latest."""
        failure: ControlplaneError | None = None
        async with self.ledger.lock:
            self._expect_nodes()
            now_s = self._clock()
            view = self.view()
            self._tell_nodes(view)
            self.clocks = advance(self.clocks, self.ledger.records.values(), view.replicas, now_s)
            wake_s: float | None = None
            try:
                wake_s = await self._act(view, now_s)
            except ControlplaneError as error:
                failure = error
            # Acting made records of new generations: what was seen of the old ones says nothing of them.
            view = self.view()
            self.clocks = advance(self.clocks, self.ledger.records.values(), view.replicas, now_s)
            await self.publisher.publish(view, now_s)
            records = self.ledger.records.values()
            self.nodes.attentive = any(record.draining or record.stopping for record in records)
            if failure is None:
                await self.ledger.store_events()
        if failure is not None:
            raise failure
        times = [t - self._clock() for t in (wake_s, self.nodes.next_loss_s()) if t is not None]
        return min([LOOK_AT_LEAST_EVERY_S, *times])

    def _tell_failure(self, code: str, message: str) -> None:
        """Tell of a failure when it begins and when it is over, not each second."""
        if code != self._failing:
            self.ledger.events.add("controller", code or "recovered", message or f"after {self._failing}")
            _log.warning("a look failed: %s: %s" if code else "looks succeed again%s%s", code, message)
            self._failing = code

    def view(self) -> View:
        """Return what is known of every record now."""
        records = self.ledger.records.values()
        return observation.view(records, self.nodes, self.publisher.out_since, self.ledger.drained_nodes)

    def now_s(self) -> float:
        """Return the time of the clock that the loop goes by."""
        return self._clock()

    def _expect_nodes(self) -> None:
        expected = {record.node for record in self.ledger.records.values()}
        if self.ledger.desired is not None:
            expected.update(node.name for node in self.ledger.desired.nodes)
        self.nodes.expect(expected)

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
