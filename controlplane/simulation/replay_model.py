"""What another policy would have done: a journal's requests, on modelled engines.

The recorded times to first byte and cache hits belong to the recorded choices, so they say nothing of other ones.
Therefore the requests alone are taken from the journal (when each came, its prompt's blocks, its lengths), and put to a
core with the policy in question; where it sends each, a model of that engine (engine.py), with the speed that the
journal taught, works it off, and what happens there is told to the core: first bytes, reports, ends, gauges. A policy
that is compared with the recorded one is compared with the *recorded policy in the same model*, never with what was
measured; how far the model is from what was measured is shown beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from controlplane.router import journal_lines as lines
from controlplane.router.journal import JournalledCore
from controlplane.router.journal_settings import WatchedTopology
from controlplane.routing.events import CacheCleared, Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.fleet import READY
from controlplane.routing.load import Decision
from controlplane.routing.record import GENERATING_KINDS, Request
from controlplane.simulation.cache import tokens
from controlplane.simulation.engine import IDLE, Engine, Job
from controlplane.simulation.outcome import Outcome, Record
from controlplane.simulation.prompt import Ask
from controlplane.simulation.replay import installed
from controlplane.simulation.replay_observed import SAMPLES, Observed
from controlplane.simulation.replay_prompts import Prompts
from controlplane.simulation.replay_read import Progress, Recorded, calls, silent
from controlplane.simulation.replay_scale import Scale

#: Replicas that a choice is compared with for its regret; of more, these take turns.
REGRET_REPLICAS = 64
#: Status of a request whose engine ended under it, and of one that no engine can take.
LOST = 502
TOO_LONG = 400


@dataclass(frozen=True, slots=True)
class Other:
    """A policy in the place of the recorded ones. ``model`` empty: for all models."""

    policy: str
    parameters: Mapping[str, float]
    model: str = ""

    def applied(self, topology: WatchedTopology) -> WatchedTopology:
        """Return the topology with this policy."""
        models = tuple(
            replace(model, policy=self.policy, parameters=dict(self.parameters))
            if self.model in ("", model.name)
            else model
            for model in topology.models
        )
        return replace(topology, models=models)


@dataclass(frozen=True, slots=True)
class Modelled:
    """One model's figures in one modelled run.

    ``regret_s`` is the mean over decisions of the prefill's predicted end at the chosen engine, less that at the best.
    """

    outcome: Outcome
    regret_s: float


class ModelRun:
    """One run of a journal's requests on modelled engines."""

    def __init__(
        self,
        recorded: Recorded,
        observed: Observed,
        other: Other | None = None,
        scales: Mapping[str, Scale] | None = None,
    ) -> None:
        """``other`` None: the recorded policies. ``scales`` are of the engines, by model."""
        self._scales = scales or {}
        self._recorded = recorded
        self._observed = observed
        self._other = other
        self._core = JournalledCore(seed=recorded.start.seed)
        self._prompts = Prompts(observed.block_tokens())
        self._engines: dict[str, Engine] = {}
        self._models: dict[str, str] = {}
        self._ready: dict[str, list[Engine]] = {}
        self._isolated: set[str] = set()
        self._jobs: dict[bytes, Job] = {}
        #: Requests that wait to be admitted, and when each came.
        self._waiting: dict[bytes, tuple[lines.Decide, float]] = {}
        self._records: dict[str, Record] = {}
        self._regrets: dict[str, tuple[float, int]] = {}
        #: (time, order, engine, its version)
        self._steps: list[tuple[float, int, Engine, int]] = []
        self._serial = 0
        self._seen = 0
        self._every = max(1, recorded.decisions // SAMPLES)
        self._turn = 0

    def run(self, progress: Progress = silent) -> dict[str, Modelled]:
        """Run to the last token. Returns figures by model; raises BrokenJournal, UnknownPolicy, OSError."""
        now_s = self._recorded.began_s
        for line, _, place in calls(self._recorded, progress):
            now_s = max(now_s, line.at)
            self._work(now_s)
            self._release(now_s)
            match line:
                case lines.Install() | lines.InForce():
                    self._install(line.topology, now_s, place)
                case lines.Decide():
                    self._decide(line, now_s)
                case lines.Leave():
                    self._waiting.pop(line.id, None)
                    self._core.leave(line.id, now_s)
                case lines.Observed():
                    self._scrape(line.event.server.decode(), now_s)
                case lines.Cleared():
                    self._clear(line.event, now_s)
                case _:
                    pass  # what was heard of the recorded choices; this run hears of its own
        self._work(IDLE)
        return {model: Modelled(record.outcome(), self._regret(model)) for model, record in self._records.items()}

    def _install(self, topology: WatchedTopology, now_s: float, place: str) -> None:
        if self._other is not None:
            topology = self._other.applied(topology)
        installed(self._core, topology, now_s, place)
        self._isolated = {model.name for model in topology.models if model.isolated}
        kept: dict[str, Engine] = {}
        self._ready = {model.name: [] for model in topology.models}
        for info in topology.replicas:
            engine = self._engines.get(info.server)
            if engine is None:
                self._serial += 1
                scale = self._scales.get(info.model, Scale())
                engine = Engine(self._serial, scale.applied(self._observed.profile(info.server)))
            kept[info.server] = engine
            self._models[info.server] = info.model
            if info.state == READY and info.model in self._ready:
                self._ready[info.model].append(engine)
        gone = {engine.index for server, engine in self._engines.items() if server not in kept}
        self._engines = kept
        for job in [job for job in self._jobs.values() if job.engine in gone]:
            self._finish(job, now_s, LOST)

    def _decide(self, line: lines.Decide, now_s: float) -> None:
        decision = self._core.decide(line.id, line.request, now_s, self._held(line), line.priority)
        if decision.outcome == "wait":
            self._waiting[line.id] = (line, now_s)
        elif decision.outcome == "go":
            self._go(line, decision, now_s, now_s)

    def _held(self, line: lines.Decide) -> dict[bytes, int] | None:
        """Return what a precise model's engines cache of a prompt here; the recorded figures are of other caches."""
        if line.held is None:
            return None
        model = line.request.model.decode(errors="replace")
        ask = self._ask(line.id, line.request, model)
        held: dict[bytes, int] = {}
        for server, engine in self._engines.items():
            count = engine.cached_blocks(ask)
            if count:
                held[server.encode()] = tokens(ask.blocks[:count])
        return held

    def _release(self, now_s: float) -> None:
        """Let those go that wait and may: the router looks every few milliseconds, this when something has happened."""
        if not self._core.may_release:
            return
        for request_id, decision in self._core.release(now_s):
            waited = self._waiting.pop(request_id, None)
            if decision.outcome == "go" and waited is not None:
                self._go(waited[0], decision, waited[1], now_s)

    def _go(self, line: lines.Decide, decision: Decision, came_s: float, now_s: float) -> None:
        server = decision.server_name
        model = self._models[server]
        record = self._records.setdefault(model, Record(self._core.policy_of(model), 0.0, float("inf")))
        record.arrived(came_s)
        self._sample(now_s)
        engine = self._engines[server]
        job = Job(self._ask(line.id, line.request, model), came_s)
        job.request_id, job.server, job.engine = line.id, decision.server, engine.index
        known = self._jobs.pop(line.id, None)
        if known is not None:  # asked again: the core forgot the first one, but its engine still works on it
            known.request_id = b"%b before %d" % (line.id, self._seen)
            self._jobs[known.request_id] = known
        self._jobs[line.id] = job
        if job.ask.prompt_tokens + job.ask.output_tokens > engine.cache.capacity:
            self._finish(job, now_s, TOO_LONG)
            return
        self._compare(model, engine, job)
        version = engine.version
        engine.submit(job, now_s)
        if engine.version != version:
            self._push(engine)

    def _ask(self, request_id: bytes, request: Request, model: str) -> Ask:
        prompt, output = self._observed.lengths(request_id, request, request.kind in GENERATING_KINDS)
        tenant = request.tenant if model in self._isolated else b""
        return Ask(0.0, prompt, output, self._prompts.blocks(request, prompt, tenant), request.hashes)

    def _compare(self, model: str, chosen: Engine, job: Job) -> None:
        ready = self._ready.get(model, [])
        if len(ready) > REGRET_REPLICAS:
            self._turn = turn = (self._turn + REGRET_REPLICAS) % len(ready)
            ready = (ready + ready)[turn : turn + REGRET_REPLICAS]
        mine = chosen.prefill_end_s(job)
        best = min((engine.prefill_end_s(job) for engine in ready), default=mine)
        total, count = self._regrets.get(model, (0.0, 0))
        self._regrets[model] = (total + max(0.0, mine - best), count + 1)

    def _regret(self, model: str) -> float:
        total, count = self._regrets.get(model, (0.0, 0))
        return total / count if count else 0.0

    def _sample(self, now_s: float) -> None:
        self._seen += 1
        if self._seen % self._every == 0:
            for model, record in self._records.items():
                if ready := self._ready.get(model):
                    record.sample(now_s, [engine.in_flight for engine in ready])

    def _work(self, until_s: float) -> None:
        """Let the engines work."""
        steps = self._steps
        while steps and steps[0][0] <= until_s:
            now_s, _, engine, version = heappop(steps)
            if engine.version != version:
                continue
            engine.advance(now_s)
            if engine.due_s != IDLE:
                self._push(engine)
            for job in engine.firsts:
                if self._observed.first_bytes:
                    self._core.first_byte(FirstByte(job.request_id, job.server), now_s)
            for job in engine.ends:
                if job.request_id in self._jobs:
                    self._finish(job, now_s, 200)
            self._release(now_s)

    def _push(self, engine: Engine) -> None:
        self._serial += 1
        heappush(self._steps, (engine.due_s, self._serial, engine, engine.version))

    def _finish(self, job: Job, now_s: float, status: int) -> None:
        del self._jobs[job.request_id]
        ask, core = job.ask, self._core
        if status == 200:
            if self._observed.reports:
                queue_s, prefill_s = job.admitted_s - job.arrived_s, job.first_s - job.admitted_s
                counts = ask.prompt_tokens, job.cached, ask.output_tokens
                core.reported(EngineReport(job.request_id, job.server, *counts, queue_s, prefill_s), now_s)
            self._records[self._models[job.server.decode()]].ended(job)
        first_ms = round((job.first_s - job.arrived_s) * 1e3) if job.first_s >= 0 else -1
        total_ms = round((now_s - job.arrived_s) * 1e3)
        core.finished(Completion(job.request_id, job.server, status, first_ms, total_ms, 0, b"--", 0), now_s)

    def _scrape(self, server: str, now_s: float) -> None:
        engine = self._engines.get(server)
        if engine is None:
            return
        queued = len(engine.waiting)
        use = min(1.0, engine.cache.pinned / engine.cache.capacity)
        counts = engine.queries, engine.hits, engine.generated, 0
        self._core.observed(Telemetry(server.encode(), engine.in_flight - queued, queued, use, *counts), now_s)

    def _clear(self, event: CacheCleared, now_s: float) -> None:
        engine = self._engines.get(event.server.decode())
        if engine is not None:
            room = engine.cache.capacity - engine.cache.pinned
            engine.cache.reserve(room)  # evicts all that no running request needs
            engine.cache.pinned -= room
        self._core.cache_cleared(event, now_s)
