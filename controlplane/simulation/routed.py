"""The router's routing core on simulated time: the same calls, the same policies, the same order.

What happens at an engine reaches the core later, as it does in a real cluster: HAProxy's log line about a finished
request, the middleware's report of a first byte and of a request's numbers, and gauges that are read now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.routing.admission.settings import Settings
from controlplane.routing.core import RoutingCore
from controlplane.routing.events import Completion, EngineReport, FirstByte, Telemetry
from controlplane.routing.features import from_parts
from controlplane.routing.fleet import DECODE, MIXED, PREFILL, READY, ModelInfo, PoolInfo, ReplicaInfo, Topology
from controlplane.routing.load import BYTES_PER_TOKEN, Decision
from controlplane.simulation.cache import tokens
from controlplane.simulation.chooser import REFUSED, WAITING
from controlplane.simulation.engine import Engine, Job

MODEL = "simulated"
#: Simulated time 0, in seconds since 1970: cores are never asked about the year 1970.
EPOCH_S = 1_000_000_000.0
#: Receipts kept; nobody reads them here.
RECEIPTS = 1_024
#: What engines say of themselves; the cache here is coarser (cache.py).
KV_BLOCK_TOKENS = 16
#: Bytes that a streamed token takes on the wire, about.
EVENT_BYTES = 230
#: Ports are all that tells simulated replicas' addresses apart, and nobody connects to them.
PORT = 8_000


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds until the core hears of something.

    ``log_s``: HAProxy's datagram, sent when the answer ended. ``report_s``: the middleware's reports, which go in
    batches over one stream. ``scrape_interval_s``: between two reads of an engine's gauges (0: never read).
    ``first_bytes`` and ``reports`` say whether replicas run the middleware that sends them.
    """

    log_s: float = 0.001
    report_s: float = 0.02
    scrape_interval_s: float = 1.0
    first_bytes: bool = True
    reports: bool = True


@dataclass(frozen=True, slots=True)
class Routing:
    """A policy and its parameters, and what else a spec says of a model's routing.

    ``admission`` None: nothing waits. ``precise``: the router knows each engine's cache from its KV events.
    """

    policy: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    admission: Settings | None = None
    precise: bool = False


class Routed:
    """Decisions of one RoutingCore."""

    def __init__(self, routing: Routing, delays: Delays, seed: int = 0) -> None:
        self.name = routing.policy
        self.scrape_interval_s = delays.scrape_interval_s
        self.core = RoutingCore(seed=seed, receipt_capacity=RECEIPTS)
        self._routing = routing
        self._delays = delays
        self._engines: dict[bytes, int] = {}
        self._servers: list[bytes] = []
        self._answering: Sequence[Engine] = ()
        self._waiting: dict[bytes, Job] = {}
        self._template = from_parts(kind="chat", model=MODEL)
        self._count = 0
        #: (due, event), each in the order of time because each delay is constant.
        self._first_bytes: deque[tuple[float, FirstByte]] = deque()
        self._completions: deque[tuple[float, Completion]] = deque()
        self._reports: deque[tuple[float, EngineReport]] = deque()

    def start(self, engines: Sequence[Engine], prefill_engines: Sequence[Engine]) -> None:
        """Install the topology of these engines. Raises UnknownPolicy."""
        role = DECODE if prefill_engines else MIXED
        answering = [_info(engine, role) for engine in engines]
        self._engines = {info.server.encode(): engine.index for info, engine in zip(answering, engines, strict=True)}
        self._servers = list(self._engines)
        self._answering = engines
        prefilling = [_info(engine, PREFILL) for engine in prefill_engines]
        roles = (DECODE, PREFILL) if prefill_engines else (MIXED,)
        model = ModelInfo(
            name=MODEL,
            pools=tuple(PoolInfo(_pool(role), role) for role in roles),
            policy=self._routing.policy,
            parameters=dict(self._routing.parameters),
            precise=self._routing.precise,
            admission=self._routing.admission,
        )
        self.core.install(Topology(1, "simulation", (model,), (*answering, *prefilling)), EPOCH_S)

    def choose(self, job: Job, now_s: float) -> int:
        """Put the request to the core, after all that it has heard by now."""
        self.hear(now_s)
        ask = job.ask
        prompt_bytes = ask.prompt_tokens * BYTES_PER_TOKEN
        self._count += 1
        job.request_id = b"%036d" % self._count
        request = self._template._replace(
            session=ask.session, hashes=ask.hashes, body_bytes=prompt_bytes, prompt_bytes=prompt_bytes
        )
        held = self._held(job) if self._routing.precise else None
        decision = self.core.decide(job.request_id, request, EPOCH_S + now_s, held)
        if decision.outcome == "wait":
            self._waiting[job.request_id] = job
            return WAITING
        return self._sent(job, decision)

    def released(self, now_s: float) -> tuple[list[tuple[Job, int]], bool]:
        """Tell of the requests that the core let go, or shed."""
        self.hear(now_s)
        waiting = self._waiting
        let_go = [(waiting.pop(request_id), decision) for request_id, decision in self.core.release(EPOCH_S + now_s)]
        return [(job, self._sent(job, decision)) for job, decision in let_go], bool(waiting)

    def _sent(self, job: Job, decision: Decision) -> int:
        if decision.outcome != "go":
            return REFUSED
        job.server = decision.server
        return self._engines[decision.server]

    def _held(self, job: Job) -> dict[bytes, int]:
        """Return what each engine caches of a prompt, in tokens."""
        blocks = job.ask.blocks
        held = {}
        for server, engine in zip(self._servers, self._answering, strict=True):
            count = engine.cached_blocks(job.ask)
            if count:
                held[server] = tokens(blocks[:count])
        return held

    def first_byte(self, job: Job, now_s: float) -> None:
        """Queue the middleware's report."""
        if self._delays.first_bytes:
            self._first_bytes.append((now_s + self._delays.report_s, FirstByte(job.request_id, job.server)))

    def ended(self, job: Job, now_s: float) -> None:
        """Queue HAProxy's log line and the middleware's report."""
        ask = job.ask
        answered = job.first_s >= 0
        completion = Completion(
            job.request_id,
            job.server,
            200 if answered else 400,
            round((job.first_s - job.sent_s) * 1e3) if answered else -1,
            round((job.ended_s - job.arrived_s) * 1e3),
            ask.output_tokens * EVENT_BYTES if answered else 0,
            b"--",
            0,
        )
        self._completions.append((now_s + self._delays.log_s, completion))
        if self._delays.reports and answered:
            report = EngineReport(
                job.request_id,
                job.server,
                ask.prompt_tokens,
                job.cached,
                ask.output_tokens,
                job.admitted_s - job.sent_s,
                job.first_s - job.admitted_s,
            )
            self._reports.append((now_s + self._delays.report_s, report))

    def scrape(self, engine: Engine, now_s: float) -> None:
        """Hand an engine's gauges to the core."""
        self.hear(now_s)
        queued = len(engine.waiting)
        self.core.observed(
            Telemetry(
                self._servers[engine.index],
                engine.in_flight - queued,
                queued,
                engine.cache.pinned / engine.cache.capacity,
                engine.queries,
                engine.hits,
                engine.generated,
                0,
            ),
            EPOCH_S + now_s,
        )

    def hear(self, now_s: float) -> None:
        """Tell the core what is due, in the order of time."""
        core = self.core
        firsts, ends, reports = self._first_bytes, self._completions, self._reports
        while True:
            first = firsts[0][0] if firsts else now_s + 1.0
            end = ends[0][0] if ends else now_s + 1.0
            report = reports[0][0] if reports else now_s + 1.0
            at_s = min(first, end, report)
            if at_s > now_s:
                return
            if first == at_s:
                core.first_byte(firsts.popleft()[1], EPOCH_S + at_s)
            elif report == at_s:
                core.reported(reports.popleft()[1], EPOCH_S + at_s)
            else:
                core.finished(ends.popleft()[1], EPOCH_S + at_s)


def _pool(role: str) -> str:
    return f"{MODEL}-{role}"


def _info(engine: Engine, role: str) -> ReplicaInfo:
    name = f"{_pool(role)}-{engine.index}"
    return ReplicaInfo(
        server=f"{name}.g1",
        name=name,
        model=MODEL,
        pool=_pool(role),
        host="127.0.0.1",
        port=PORT,
        state=READY,
        role=role,
        kv_capacity_tokens=engine.profile.kv_capacity_tokens,
        kv_block_tokens=KV_BLOCK_TOKENS,
        max_running=engine.profile.max_running,
    )
