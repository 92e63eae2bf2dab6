"""The event loop: a workload, a chooser and engines, from the first request to the last token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush

from controlplane.simulation.chooser import WAITING, Chooser
from controlplane.simulation.engine import IDLE, Engine, Job
from controlplane.simulation.outcome import Outcome, Record
from controlplane.simulation.prompt import Ask
from controlplane.simulation.workload import Workload

#: Part of a run that is not measured: caches and queues fill.
WARM_UP = 0.2
#: Samples of the load in one run.
SAMPLES = 1_000
#: Parts of an interval that scrapes are spread over, as different engines are read at different times.
SCRAPE_PARTS = 10
#: Seconds between two looks at the requests that wait for a decision, as in the router.
RELEASE_S = 0.005
#: Requests between two calls of ``progress``.
PROGRESS_EVERY = 256

_STEP, _COME, _RELEASE, _LOAD, _SAMPLE, _SCRAPE = range(6)


class Simulation:
    """One run of one workload under one chooser."""

    def __init__(
        self,
        workload: Workload,
        chooser: Chooser,
        engines: Sequence[Engine],
        prefill_engines: Sequence[Engine] = (),
        *,
        warm_up: float = WARM_UP,
        progress: Callable[[int, float], None] | None = None,
    ) -> None:
        self._workload = workload
        self._chooser = chooser
        self._engines = engines
        self._prefill_engines = prefill_engines
        self._progress = progress
        self._record = Record(chooser.name, warm_up * workload.length_s, workload.length_s)
        #: (time, order, kind, what, number)
        self._events: list[tuple[float, int, int, object, int]] = []
        self._serial = 0
        self._done = 0
        self._releasing = False
        self._arrivals: Iterator[Ask] = iter(())

    def run(self) -> Outcome:
        """Run to the end. Raises UnknownPolicy for a policy that does not exist."""
        chooser = self._chooser
        chooser.start(self._engines, self._prefill_engines)
        self._arrivals = self._workload.arrivals()
        self._next_arrival()
        self._push(0.0, _SAMPLE, None)
        if chooser.scrape_interval_s:
            for part in range(min(SCRAPE_PARTS, len(self._engines))):
                self._push(chooser.scrape_interval_s * (part + 1) / SCRAPE_PARTS, _SCRAPE, part)
        events = self._events
        length_s = self._workload.length_s
        while events:
            now_s, _, kind, what, number = heappop(events)
            if kind == _STEP:
                assert isinstance(what, Engine)
                if what.version == number:
                    self._step(what, now_s)
            elif kind == _COME:
                assert isinstance(what, Ask)
                self._come(what, now_s)
                if number:
                    self._next_arrival()
            elif kind == _RELEASE:
                self._release(now_s)
            elif kind == _LOAD:
                assert isinstance(what, Job)
                assert what.decode is not None
                what.decode.promised -= 1
                self._submit(what.decode, what, now_s)
            elif now_s > length_s:
                continue  # gauges and samples end with the workload
            elif kind == _SAMPLE:
                self._record.sample(now_s, [engine.in_flight + engine.promised for engine in self._engines])
                self._push(now_s + max(length_s / SAMPLES, 1e-3), _SAMPLE, None)
            else:
                assert isinstance(what, int)
                for engine in self._engines[what::SCRAPE_PARTS]:
                    chooser.scrape(engine, now_s)
                self._push(now_s + chooser.scrape_interval_s, _SCRAPE, what)
        return self._record.outcome()

    def _push(self, at_s: float, kind: int, what: object, number: int = 0) -> None:
        self._serial += 1
        heappush(self._events, (at_s, self._serial, kind, what, number))

    def _next_arrival(self) -> None:
        ask = next(self._arrivals, None)
        if ask is not None:
            self._push(ask.at_s, _COME, ask, 1)

    def _come(self, ask: Ask, now_s: float) -> None:
        self._record.arrived(now_s)
        job = Job(ask, now_s)
        self._send(job, self._chooser.choose(job, now_s), now_s)

    def _release(self, now_s: float) -> None:
        """Look at the requests that wait for a decision."""
        released, more = self._chooser.released(now_s)
        for job, chosen in released:
            job.sent_s = now_s
            self._send(job, chosen, now_s)
        self._releasing = more
        if more:
            self._push(now_s + RELEASE_S, _RELEASE, None)

    def _send(self, job: Job, chosen: int, now_s: float) -> None:
        """Carry a decision out."""
        if chosen == WAITING:
            if not self._releasing:
                self._releasing = True
                self._push(now_s + RELEASE_S, _RELEASE, None)
            return
        ask = job.ask
        if chosen < 0:
            self._answered(ask, now_s)  # refused: its user hears of it
            return
        engine = self._engines[chosen]
        if ask.prompt_tokens + ask.output_tokens > engine.cache.capacity:
            job.ended_s = now_s
            self._chooser.ended(job, now_s)  # the engine refuses what can never fit
            self._answered(ask, now_s)
            return
        prefill = self._prefill_engine(engine, job)
        if prefill is None:
            self._submit(engine, job, now_s)
        else:
            job.decode = engine
            engine.promised += 1
            self._submit(prefill, job, now_s)

    def _prefill_engine(self, engine: Engine, job: Job) -> Engine | None:
        """Return where a request's prompt is prefilled: nowhere but in ``engine`` (None), or where it ends first."""
        if not self._prefill_engines:
            return None
        return min(self._prefill_engines, key=lambda prefill: prefill.prefill_end_s(job))

    def _submit(self, engine: Engine, job: Job, now_s: float) -> None:
        version = engine.version
        engine.submit(job, now_s)
        if engine.version != version:
            self._push(engine.due_s, _STEP, engine, engine.version)

    def _step(self, engine: Engine, now_s: float) -> None:
        engine.advance(now_s)
        if engine.due_s != IDLE:
            self._push(engine.due_s, _STEP, engine, engine.version)
        if engine.prefill_only:
            for job in engine.ends:
                job.loaded = True
                self._push(now_s + engine.profile.kv_transfer_s * job.ask.prompt_tokens, _LOAD, job)
            return
        for job in engine.firsts:
            self._chooser.first_byte(job, now_s)
        for job in engine.ends:
            self._chooser.ended(job, now_s)
            self._record.ended(job)
            self._answered(job.ask, now_s)

    def _answered(self, ask: Ask, now_s: float) -> None:
        self._done += 1
        if self._progress is not None and not self._done % PROGRESS_EVERY:
            self._progress(self._done, now_s)
        if ask.user >= 0:
            following = self._workload.answered(ask, now_s)
            if following is not None:
                self._push(following.at_s, _COME, following)
