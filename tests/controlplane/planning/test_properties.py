from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.planning.actions import Action, Drain, Restart, Stop
from controlplane.planning.carry_out import carry_out
from controlplane.planning.clocks import Clock, advance
from controlplane.planning.plan import plan
from controlplane.planning.rehearsal import rehearse
from controlplane.planning.world import Desired, NodeDesired, Observation, Phase, PoolDesired, Record, View

NODES = (NodeDesired("a", "10.0.0.1", 9000, 9005), NodeDesired("b", "10.0.0.1", 9004, 9009))
ROLLOUT = {"spec_changed", "restart_requested", "node_not_allowed"}


@dataclass
class Engine:
    generation: int
    phase: Phase = Phase.PENDING
    exited: bool = False
    streams: int = 0


@dataclass
class World:
    """Engines that are really there, and a controller that sees them through planning."""

    pools: dict[str, PoolDesired] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    given_generations: set[int] = field(default_factory=set)
    generation: int = 0
    now_s: float = 0.0

    def desired(self) -> Desired:
        return Desired(tuple(self.pools.values()), NODES, "a", 20.0)

    def view(self) -> View:
        seen = {}
        for record in self.records.values():
            if record.node in self.lost:
                continue
            engine = self.engines.get(record.replica)
            if engine is None:
                seen[record.replica] = Observation(Phase.PENDING, gone=True, streams=0, streams_at_s=self.now_s)
            else:
                seen[record.replica] = Observation(
                    engine.phase, exited=engine.exited, streams=engine.streams, streams_at_s=self.now_s
                )
        return View(seen, frozenset(self.lost))

    def look(self) -> bool:
        """One look; returns whether anything was done."""
        view = self.view()
        self.clocks = advance(self.clocks, self.records.values(), view.replicas, self.now_s)
        step = plan(self.desired(), self.records.values(), view, self.clocks, self.now_s)
        for action in step.actions:
            self._check(action)
        outcome = carry_out(step.actions, self.records, self.desired(), self.generation)
        for name in outcome.launched:
            generation = outcome.records[name].generation
            assert generation not in self.given_generations
            self.given_generations.add(generation)
        self.records, self.generation = outcome.records, outcome.generation
        self._check_all()
        self._obey()
        return bool(step.actions)

    def _check(self, action: Action) -> None:
        engine, record = self.engines.get(action.replica), self.records.get(action.replica)
        if not isinstance(action, Stop | Restart) or engine is None or record is None:
            return
        if engine.streams and engine.phase is not Phase.FAILED:
            since = self.clocks[action.replica].drain_since_s
            assert since is not None, f"{action} though it was never drained"
            assert self.now_s >= since + record.drain_timeout_s, f"{action} before its deadline"

    def _check_all(self) -> None:
        leases = [(r.host, r.port) for r in self.records.values()]
        assert len(set(leases)) == len(leases)
        for pool in self.pools:
            rolling = [r for r in self.records.values() if r.pool == pool and r.drain in ROLLOUT and not r.stopping]
            assert len(rolling) <= 1

    def _obey(self) -> None:
        for name, record in self.records.items():
            if record.node in self.lost:
                continue
            if record.stopping:
                self.engines.pop(name, None)
            elif name not in self.engines or self.engines[name].generation != record.generation:
                self.engines[name] = Engine(record.generation)
        for name in self.engines.keys() - self.records.keys():
            del self.engines[name]

    def settle(self) -> None:
        """Let everything go well from here on, and demand that planning comes to rest at what is wanted."""
        self.lost.clear()
        for _ in range(400):
            for engine in self.engines.values():
                if engine.phase in {Phase.PENDING, Phase.STARTING}:
                    engine.phase = Phase.READY
                engine.streams = 0
            did = self.look()
            self.now_s += 1.0
            if not did and all(e.phase is Phase.READY for e in self.engines.values()) and not self._pending():
                break
        else:
            raise AssertionError("planning did not come to rest")
        wanted = {f"{p.name}-{i}": p.shape for p in self.pools.values() for i in range(p.replicas)}
        assert {name: r.shape for name, r in self.records.items()} == wanted
        assert not any(r.drain or r.restart_requested or r.stopping for r in self.records.values())

    def _pending(self) -> bool:
        step = plan(self.desired(), self.records.values(), self.view(), self.clocks, self.now_s)
        return bool(step.actions) or step.wake_s is not None


POOL = st.sampled_from(["p", "q"])
EVENTS = st.one_of(
    st.tuples(st.just("pool"), POOL, st.integers(0, 4), st.sampled_from("ab")),
    st.tuples(st.just("remove"), POOL),
    st.tuples(st.just("later"), st.sampled_from([0.2, 1.0, 5.0, 30.0])),
    st.tuples(st.just("start"), st.integers(0, 7)),
    st.tuples(st.just("crash"), st.integers(0, 7)),
    st.tuples(st.just("hang"), st.integers(0, 7)),
    st.tuples(st.just("streams"), st.integers(0, 7), st.integers(0, 3)),
    st.tuples(st.just("operator"), st.integers(0, 7), st.sampled_from(["drain", "undrain", "restart"])),
    st.tuples(st.just("lose"), st.sampled_from("ab")),
    st.tuples(st.just("back"), st.sampled_from("ab")),
)


def happen(world: World, event: tuple) -> None:  # type: ignore[type-arg]
    kind = event[0]
    names = sorted(world.engines)
    if kind == "pool":
        world.pools[event[1]] = PoolDesired(event[1], "tiny", "mixed", event[2], event[3])
    elif kind == "remove":
        world.pools.pop(event[1], None)
    elif kind == "later":
        world.now_s += event[1]
    elif kind == "lose":
        world.lost.add(event[1])
    elif kind == "back":
        world.lost.discard(event[1])
    elif names and kind == "operator":
        name = names[event[1] % len(names)]
        changes = {
            "drain": {"drained_by_operator": True, "drain_timeout_s": 20.0},
            "undrain": {"drained_by_operator": False},
            "restart": {"restart_requested": True},
        }[event[2]]
        world.records[name] = replace(world.records[name], **changes)  # type: ignore[arg-type]
    elif names:
        engine = world.engines[names[event[1] % len(names)]]
        if kind == "streams":
            engine.streams = event[2] if engine.phase is Phase.READY else 0
        elif kind == "start" and not engine.exited:
            engine.phase = Phase.READY
        elif kind == "crash":
            engine.phase, engine.exited, engine.streams = Phase.FAILED, True, 0
        elif kind == "hang" and engine.phase is Phase.READY:
            engine.phase = Phase.FAILED


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_planning_keeps_its_promises_and_comes_to_rest(events: list[tuple]) -> None:  # type: ignore[type-arg]
    world = World()
    for event in events:
        happen(world, event)
        world.look()
    world.settle()


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(EVENTS, max_size=20))
def test_the_same_input_gives_the_same_plan(events: list[tuple]) -> None:  # type: ignore[type-arg]
    world = World()
    for event in events:
        happen(world, event)
        world.look()
    arguments = (world.desired(), list(world.records.values()), world.view(), world.clocks, world.now_s)
    assert plan(*arguments) == plan(*arguments)
    assert rehearse(*arguments) == rehearse(*arguments)


def test_a_rehearsal_tells_every_step_of_a_rollout() -> None:
    world = World()
    happen(world, ("pool", "p", 2, "a"))
    world.settle()
    happen(world, ("pool", "p", 3, "b"))
    told = rehearse(world.desired(), world.records.values(), world.view(), world.clocks, world.now_s)
    assert [(a.verb, a.replica) for a in told.actions] == [
        ("start", "p-2"),
        ("drain", "p-0"),
        ("restart", "p-0"),
        ("drain", "p-1"),
        ("restart", "p-1"),
    ]
    assert isinstance(told.actions[1], Drain)
