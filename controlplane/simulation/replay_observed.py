"""What a journal tells of requests and replicas beside the decisions: lengths, speeds, and how it really went."""

from __future__ import annotations

from dataclasses import replace

from controlplane.router import journal_lines as lines
from controlplane.router.journal import JournalledCore
from controlplane.routing.events import EngineReport
from controlplane.routing.load import BLOCK_BYTES, BYTES_PER_TOKEN, DEFAULT_HINTS, Decision
from controlplane.routing.record import Request
from controlplane.routing.view import whole_prompt_bytes
from controlplane.simulation.engine import Job
from controlplane.simulation.outcome import Outcome, Record
from controlplane.simulation.profile import EngineProfile
from controlplane.simulation.prompt import Ask

#: An answer's length, in tokens, where no engine reported any: English chat.
DEFAULT_OUTPUT_TOKENS = 256
#: KV cache, in tokens, and requests at once of a replica that does not tell: what the router takes it to have.
DEFAULT_KV_TOKENS = 524_288
DEFAULT_RUNNING = 256
#: Tokens of one router block; outside of it a report is of something else than text.
BLOCK_TOKENS_RANGE = (64, BLOCK_BYTES)
#: Requests that ended and whose engine's report may still come.
MAX_WITHOUT_REPORT = 4_096
#: Looks at how busy the replicas are, over a whole journal.
SAMPLES = 1_000


class Observed:
    """Filled while a journal is replayed with its own policies; then read by the modelled runs."""

    def __init__(self, decisions: int) -> None:
        self.first_bytes = False
        self.reports = False
        self._every = max(1, decisions // SAMPLES)
        self._seen = 0
        #: By request id: prompt and output tokens.
        self._tokens: dict[bytes, tuple[int, int]] = {}
        self._reported_bytes = self._reported_prompt = self._reported_output = self._outputs = 0
        self._profiles: dict[str, EngineProfile] = {}
        self._records: dict[str, Record] = {}
        #: Requests in flight: model, when it came, its first byte, bytes of prompt.
        self._open: dict[bytes, tuple[str, float, float, int]] = {}
        #: Requests that wait to be admitted: when each came, bytes of prompt.
        self._waiting: dict[bytes, tuple[float, int]] = {}
        #: Of requests in flight, and requests that ended without one yet: a report may come a moment later.
        self._reported: dict[bytes, EngineReport] = {}
        self._ended: dict[bytes, tuple[str, Job]] = {}

    def decided(self, core: JournalledCore, line: lines.Decide, server: str) -> None:
        """Take a decision that was made again; ``server`` is empty when the request went nowhere."""
        if line.made.outcome == "wait":
            self._waiting[line.id] = (line.at, whole_prompt_bytes(line.request))
        elif server:
            self._go(core, line.id, server, line.at, whole_prompt_bytes(line.request), line.at)

    def released(self, core: JournalledCore, released: list[tuple[bytes, Decision]], now_s: float) -> None:
        """Take the requests that wait no more."""
        for request_id, decision in released:
            came_s, prompt_bytes = self._waiting.pop(request_id, (now_s, 0))
            if decision.server_name:
                self._go(core, request_id, decision.server_name, came_s, prompt_bytes, now_s)

    def _go(
        self, core: JournalledCore, request_id: bytes, server: str, came_s: float, prompt_bytes: int, now_s: float
    ) -> None:
        model = core.model_of(server)
        self._records.setdefault(model, Record("measured", 0.0, float("inf")))
        self._open[request_id] = (model, came_s, -1.0, prompt_bytes)
        self._seen += 1
        if self._seen % self._every == 0:
            for name, in_flight in core.in_flight_by_model().items():
                if name in self._records:
                    self._records[name].sample(now_s, in_flight)

    def heard(self, core: JournalledCore, line: lines.InForce | lines.Call) -> None:
        """Take any other line, before it is replayed."""
        match line:
            case lines.First():
                self.first_bytes = True
                if (known := self._open.get(line.event.request_id)) is not None:
                    self._open[line.event.request_id] = (*known[:2], line.at, known[3])
            case lines.Reported():
                self._report(line.event)
            case lines.Leave():
                self._waiting.pop(line.id, None)
            case lines.Finished():
                self._finish(line)
            case lines.Install():
                self.learn(core)
            case _:
                pass

    def learn(self, core: JournalledCore) -> None:
        """Keep what the core believes of its replicas' speeds: before some of them go, and at the end."""
        for info, rates in core.speeds():
            factor = rates.decode_factor
            self._profiles[info.server] = EngineProfile(
                name=info.server,
                step_base_s=rates.hints.step_s * factor,
                prefill_s=1.0 / rates.prefill_tokens_per_s,
                attention_s=1.0 / rates.prefill_tokens_per_s / rates.hints.attention_tokens,
                sequence_s=rates.hints.sequence_s * factor,
                context_s=rates.hints.context_s * factor,
                kv_capacity_tokens=info.kv_capacity_tokens or DEFAULT_KV_TOKENS,
                max_running=info.max_running or DEFAULT_RUNNING,
            )

    def profile(self, server: str) -> EngineProfile:
        """Return a replica's speed."""
        known = self._profiles.get(server)
        if known is None:
            known = next(iter(self._profiles.values()), _DEFAULT)
            known = replace(known, name=server)
        return known

    def block_tokens(self) -> int:
        """Return the tokens of one block of the router."""
        per_byte = self._reported_prompt / self._reported_bytes if self._reported_bytes else 1 / BYTES_PER_TOKEN
        low, high = BLOCK_TOKENS_RANGE
        return min(max(round(BLOCK_BYTES * per_byte), low), high)

    def lengths(self, request_id: bytes, request: Request, generating: bool) -> tuple[int, int]:
        """Return a request's prompt and output tokens: as its engine counted them, else as others have."""
        prompt, output = self._tokens.get(request_id, (-1, -1))
        if prompt <= 0:
            prompt = max(1, whole_prompt_bytes(request) * self.block_tokens() // BLOCK_BYTES)
        if not generating:
            return prompt, 1
        if output < 0:
            output = self._reported_output // self._outputs if self._outputs else DEFAULT_OUTPUT_TOKENS
            output = min(output, request.max_tokens or output)
        return prompt, max(1, output)

    def outcomes(self) -> dict[str, Outcome]:
        """Return what was measured while the journal was written, by model; of requests that ended."""
        for model, job in self._ended.values():
            self._records[model].ended(job)
        self._ended.clear()
        return {model: record.outcome() for model, record in self._records.items()}

    def _report(self, report: EngineReport) -> None:
        self.reports = True
        if report.output_tokens >= 0:
            self._reported_output += report.output_tokens
            self._outputs += 1
        request_id = report.request_id
        if report.prompt_tokens > 0:
            self._tokens[request_id] = (report.prompt_tokens, report.output_tokens)
        if (known := self._open.get(request_id)) is not None:
            self._reported[request_id] = report
            self._count_prompt(report, known[3])
        elif (ended := self._ended.pop(request_id, None)) is not None:
            self._records[ended[0]].ended(_with_figures(ended[1], report))

    def _count_prompt(self, report: EngineReport, prompt_bytes: int) -> None:
        if report.prompt_tokens > 0:
            self._reported_prompt += report.prompt_tokens
            self._reported_bytes += prompt_bytes

    def _finish(self, line: lines.Finished) -> None:
        known = self._open.pop(line.event.request_id, None)
        report = self._reported.pop(line.event.request_id, None)
        if known is None:
            return
        model, came_s, first_s, _ = known
        record = self._records[model]
        record.arrived(came_s)
        if not 200 <= line.event.status < 300 or line.event.first_byte_ms < 0:
            return
        job = Job(Ask(came_s, 0, 0, (), b""), came_s)
        job.first_s = first_s if first_s >= 0 else came_s + line.event.first_byte_ms / 1e3
        job.ended_s = max(job.first_s, came_s + line.event.total_ms / 1e3)
        if report is not None:
            record.ended(_with_figures(job, report))
            return
        self._ended[line.event.request_id] = (model, job)
        if len(self._ended) > MAX_WITHOUT_REPORT:
            model, job = self._ended.pop(next(iter(self._ended)))
            self._records[model].ended(job)


def _with_figures(job: Job, report: EngineReport) -> Job:
    """Add what an engine counted; without its cached tokens a request counts in no hit rate."""
    told = report.prompt_tokens > 0 and report.cached_tokens >= 0
    job.ask = Ask(job.arrived_s, report.prompt_tokens if told else 0, max(0, report.output_tokens), (), b"")
    job.cached = report.cached_tokens if told else 0
    return job


_DEFAULT = EngineProfile(
    name="",
    step_base_s=DEFAULT_HINTS.step_s,
    prefill_s=1.0 / DEFAULT_HINTS.prefill_tokens_per_s,
    attention_s=1.0 / DEFAULT_HINTS.prefill_tokens_per_s / DEFAULT_HINTS.attention_tokens,
    sequence_s=DEFAULT_HINTS.sequence_s,
    context_s=DEFAULT_HINTS.context_s,
    kv_capacity_tokens=DEFAULT_KV_TOKENS,
    max_running=DEFAULT_RUNNING,
)
