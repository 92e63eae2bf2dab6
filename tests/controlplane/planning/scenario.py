"""Planning scenarios as text: input lines, a line of dashes, then what the plan says. See scenarios/*.txt."""

from __future__ import annotations

from dataclasses import replace

from controlplane.planning.actions import Plan
from controlplane.planning.carry_out import carry_out
from controlplane.planning.clocks import Clock, advance
from controlplane.planning.phase import published
from controlplane.planning.plan import plan
from controlplane.planning.world import Desired, NodeDesired, Observation, Phase, PoolDesired, Record, View

SEPARATOR = "----"


class World:
    """The state that one scenario file builds up, step by step."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.drain_timeout_s = 600.0
        self.nodes: dict[str, NodeDesired] = {}
        self.pools: dict[str, PoolDesired] = {}
        self.records: dict[str, Record] = {}
        self.seen: dict[str, Observation] = {}
        self.lost: set[str] = set()
        self.drained: set[str] = set()
        self.clocks: dict[str, Clock] = {}
        self.generation = 0

    def step(self, lines: list[str]) -> list[str]:
        """Read the input of one step, plan, carry the plan out, and return what it said and what is published."""
        for line in lines:
            self._read(line.split())
        view = View(dict(self.seen), frozenset(self.lost), frozenset(self.drained))
        self.clocks = advance(self.clocks, self.records.values(), view.replicas, self.now_s)
        made = plan(self.desired(), self.records.values(), view, self.clocks, self.now_s)
        outcome = carry_out(made.actions, self.records, self.desired(), self.generation)
        self.records, self.generation = outcome.records, outcome.generation
        for name in outcome.launched:
            self.seen[name] = Observation(Phase.PENDING)
        self.clocks = advance(self.clocks, self.records.values(), self.seen, self.now_s)
        self.seen = {name: seen for name, seen in self.seen.items() if name in self.records}
        return [*_told(made), *(f"# {line}" for line in self._published())]

    def desired(self) -> Desired:
        nodes = tuple(self.nodes.values())
        return Desired(tuple(self.pools.values()), nodes, nodes[0].name, self.drain_timeout_s)

    def _published(self) -> list[str]:
        return [
            f"{r.replica} g{r.generation} {r.node}:{r.port} "
            f"{published(r, self.seen.get(r.replica), lost=r.node in self.lost)}"
            for r in sorted(self.records.values(), key=lambda r: (r.pool, r.index))
        ]

    def _read(self, words: list[str]) -> None:
        verb, arguments = words[0], [word for word in words[1:] if "=" not in word]
        settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        getattr(self, f"_{verb}")(*arguments, **settings)

    def _node(self, name: str, ports: str, address: str = "127.0.0.1") -> None:
        first, last = ports.split("-")
        self.nodes[name] = NodeDesired(name, address, int(first), int(last))

    def _pool(
        self, name: str, replicas: str = "1", shape: str = "a", nodes: str = "", endpoints: str = "", ports: str = "1"
    ) -> None:
        places = [place.rpartition(":") for place in endpoints.split(",") if place]
        self.pools[name] = PoolDesired(
            name=name,
            model="tiny",
            role="mixed",
            replicas=len(places) or int(replicas),
            shape=shape,
            nodes=tuple(nodes.split(",")) if nodes else (),
            external=bool(places),
            endpoints=tuple((host, int(port)) for host, _, port in places),
            ports=int(ports),
        )

    def _remove(self, kind: str, name: str) -> None:
        if kind == "pool":
            del self.pools[name]
        else:
            del self.nodes[name]

    def _drain_timeout(self, seconds: str) -> None:
        self.drain_timeout_s = float(seconds)

    def _later(self, seconds: str) -> None:
        self.now_s += float(seconds)

    def _seen(self, replicas: str, phase: str, streams: str = "", gone: str = "", exited: str = "") -> None:
        for name in sorted(self.records) if replicas == "all" else replicas.split(","):
            self.seen[name] = Observation(
                Phase(phase),
                exited=bool(exited),
                gone=bool(gone),
                streams=int(streams) if streams else None,
                streams_at_s=self.now_s,
            )

    def _lost(self, node: str) -> None:
        self.lost.add(node)
        self.seen = {name: s for name, s in self.seen.items() if self.records[name].node != node}

    def _back(self, node: str) -> None:
        self.lost.discard(node)

    def _operator(self, verb: str, name: str, timeout: str = "600") -> None:
        match verb:
            case "drain":
                changes = {"drained_by_operator": True, "drain_timeout_s": float(timeout)}
            case "undrain":
                changes = {"drained_by_operator": False}
            case "restart":
                changes = {"restart_requested": True}
            case _:
                self.drained.add(name)
                return
        self.records[name] = replace(self.records[name], **changes)  # type: ignore[arg-type]


def _told(made: Plan) -> list[str]:
    lines = [f"{a.verb} {a.replica}: {a.detail()}" for a in made.actions]
    lines += [f"blocked {b.subject}: {b.message}" for b in made.blocked]
    if made.wake_s is not None:
        lines.append(f"wake at {made.wake_s:g}")
    return lines or ["nothing to do"]


def played(text: str) -> str:
    """Return the scenario with every expected block as planning gives it now."""
    world = World()
    out: list[str] = []
    for block in text.strip("\n").split("\n\n"):
        given = []
        for line in block.splitlines():
            if line == SEPARATOR:
                break
            given.append(line)
        told = world.step([line for line in given if line and not line.startswith("#")])
        out.append("\n".join([*given, SEPARATOR, *told]))
    return "\n\n".join(out) + "\n"
