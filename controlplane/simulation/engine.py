"""A replica: continuous batching with chunked prefill, a KV cache, and time that jumps.

Each step decodes one token of every running sequence and prefills with what is left of the token budget. While
nothing is prefilled, steps differ only by the growing context, so a whole span of them, up to the next sequence that
ends, is one event whose length is known in closed form; a request that arrives meanwhile cuts it at the next step.

KV for prompt and output is reserved when a request is admitted, in the order of arrival: nothing is preempted.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import sqrt

from controlplane.simulation.cache import LENGTH, PrefixCache, SharedBlocks
from controlplane.simulation.profile import EngineProfile
from controlplane.simulation.prompt import Ask

IDLE = float("inf")


class Job:
    """One request on its way. Times in seconds, -1 while unknown."""

    __slots__ = (
        "admitted_s",
        "arrived_s",
        "ask",
        "cached",
        "cost_s",
        "decode",
        "ended_s",
        "engine",
        "first_s",
        "held",
        "left",
        "loaded",
        "position",
        "private",
        "request_id",
        "sent_s",
        "server",
        "to_compute",
    )

    def __init__(self, ask: Ask, arrived_s: float) -> None:
        self.ask = ask
        self.arrived_s = arrived_s
        #: When it was sent to a replica: later than it arrived when it had to wait for a decision.
        self.sent_s = arrived_s
        self.admitted_s = -1.0
        self.first_s = -1.0
        self.ended_s = -1.0
        self.engine = -1
        self.cached = 0
        #: Prompt tokens to prefill as far as is known: all, until the cache is looked up.
        self.to_compute = ask.prompt_tokens
        self.cost_s = 0.0
        self.left = 0
        self.position = 0
        self.held = 0
        self.private = 0
        #: Its KV comes from a prefill replica; ``decode`` is the engine that waits for it.
        self.loaded = False
        self.decode: Engine | None = None
        self.request_id = b""
        self.server = b""


class Engine:
    """One replica. ``submit`` and ``advance`` return nothing; ``due_s`` says when to call ``advance`` next.

    ``firsts`` and ``ends`` hold the jobs whose first or last token the latest ``advance`` produced.
    """

    __slots__ = (
        "_base_s",
        "_chunked",
        "_finals",
        "_finish",
        "_serial",
        "_span",
        "_started_s",
        "_steps",
        "cache",
        "context",
        "due_s",
        "ends",
        "firsts",
        "generated",
        "hits",
        "in_flight",
        "index",
        "outlook",
        "prefill_only",
        "prefilling",
        "profile",
        "promised",
        "queries",
        "running",
        "shared",
        "version",
        "waiting",
        "waiting_s",
    )

    def __init__(
        self,
        index: int,
        profile: EngineProfile,
        shared: SharedBlocks | None = None,
        prefill_only: bool = False,
    ) -> None:
        self.index = index
        self.profile = profile
        self.prefill_only = prefill_only
        self.shared = shared
        self.cache = PrefixCache(profile.kv_capacity_tokens, shared)
        self.waiting: deque[Job] = deque()
        self.prefilling: deque[Job] = deque()
        #: (step after which it ends, order, job)
        self._finish: list[tuple[int, int, Job]] = []
        self._finals: list[Job] = []
        self._steps = 0
        self._serial = 0
        self._span = 0
        self._base_s = 0.0
        self._chunked = False
        self._started_s = 0.0
        self.running = 0
        #: Tokens of context of the sequences that decode.
        self.context = 0
        self.due_s = IDLE
        self.version = 0
        self.in_flight = 0
        #: Requests that are being prefilled elsewhere for this engine.
        self.promised = 0
        #: Prompt and whole output of all in flight.
        self.outlook = 0
        #: Seconds of prefill still to do for the requests without a first token, as far as is known.
        self.waiting_s = 0.0
        self.queries = 0
        self.hits = 0
        self.generated = 0
        self.firsts: list[Job] = []
        self.ends: list[Job] = []

    def cached_blocks(self, ask: Ask) -> int:
        """Return how many of a prompt's first blocks need no prefill here."""
        return self.shared.match(ask.blocks) if self.shared is not None else self.cache.match(ask.blocks)

    def room_wait_s(self, tokens: int) -> float:
        """Return about how long it takes until ``tokens`` more fit, behind those that wait already."""
        over = self.cache.pinned + tokens - self.cache.capacity
        for job in self.waiting:
            over += job.to_compute + job.ask.output_tokens
        if over <= 0:
            return 0.0
        steps = self._steps
        for step, _, job in sorted(self._finish):
            steps = step
            over -= job.private + job.to_compute
            if over <= 0:
                break
        return (steps - self._steps) * self._base_s

    def prefill_end_s(self, job: Job) -> float:
        """Return about how many seconds from now a prompt's prefill would end here."""
        held = self.cached_blocks(job.ask)
        cached = sum([number & LENGTH for number in job.ask.blocks[:held]])
        return self.waiting_s + self.profile.prefill_time(max(1, job.ask.prompt_tokens - cached), cached)

    def submit(self, job: Job, now_s: float) -> None:
        """Take a request."""
        ask = job.ask
        job.engine = self.index
        self.in_flight += 1
        self.outlook += ask.prompt_tokens + ask.output_tokens
        if not job.loaded:
            cached = sum([number & LENGTH for number in ask.blocks[: self.cached_blocks(ask)]])
            job.to_compute = max(1, ask.prompt_tokens - cached)
        else:
            job.to_compute = 1
        job.cost_s = self.profile.prefill_time(job.to_compute, ask.prompt_tokens - job.to_compute)
        self.waiting_s += job.cost_s
        self.waiting.append(job)
        if self.due_s == IDLE:
            self._begin(now_s)
        elif not self._chunked:
            self._cut(now_s)

    def advance(self, now_s: float) -> None:
        """End the step or span that is due, and begin the next one."""
        self.firsts.clear()
        self.ends.clear()
        steps = self._span
        self._steps += steps
        self.context += self.running * steps
        self.generated += self.running * steps
        finish = self._finish
        while finish and finish[0][0] <= self._steps:
            job = heappop(finish)[2]
            self.running -= 1
            self.context -= job.ask.prompt_tokens + job.ask.output_tokens
            self._end(job, now_s)
        for job in self._finals:
            job.first_s = now_s
            self.generated += 1
            self.firsts.append(job)
            output = 1 if self.prefill_only else job.ask.output_tokens
            if output <= 1:
                self._end(job, now_s)
                continue
            self.running += 1
            self.context += job.ask.prompt_tokens + 1
            self._serial += 1
            heappush(finish, (self._steps + output - 1, self._serial, job))
        self._finals.clear()
        self._begin(now_s)

    def _end(self, job: Job, now_s: float) -> None:
        ask = job.ask
        job.ended_s = now_s
        self.in_flight -= 1
        self.outlook -= ask.prompt_tokens + ask.output_tokens
        kept = ask.kept
        blocks = ask.blocks
        if kept and not self.prefill_only:
            self.cache.keep(kept, 0)
            job.private -= sum([number & LENGTH for number in kept])
            blocks = (*blocks, *kept)
        self.cache.unpin(blocks, job.private)
        self.ends.append(job)

    def _begin(self, now_s: float) -> None:
        """Put the next step or span together."""
        profile = self.profile
        self.version += 1
        self._started_s = now_s
        running = self.running
        self._base_s = base = profile.step_base_s + profile.sequence_s * running + profile.context_s * self.context
        budget = profile.max_batched_tokens - running
        prefill_s = 0.0
        prefilling = self.prefilling
        while budget > 0:
            if prefilling:
                job = prefilling[0]
            elif self.waiting and self._admit(self.waiting[0], now_s):
                job = self.waiting.popleft()
                prefilling.append(job)
            else:
                break
            size = min(job.left, budget)
            chunk_s = profile.prefill_time(size, job.position)
            prefill_s += chunk_s
            job.position += size
            job.left -= size
            budget -= size
            self.waiting_s -= chunk_s
            if not job.left:
                prefilling.popleft()
                self._finals.append(job)
                self.cache.keep(job.ask.blocks, job.held)
        if prefill_s:
            self._chunked = True
            self._span = 1
            self.due_s = now_s + base + prefill_s
            return
        self._chunked = False
        if not running:
            self._span = 0
            self.due_s = IDLE
            return
        self._span = self._finish[0][0] - self._steps
        self.due_s = now_s + self._span_s(self._span)

    def _admit(self, job: Job, now_s: float) -> bool:
        """Give a request its KV, when there is room for all that it may need."""
        if self.running + len(self._finals) >= self.profile.max_running:
            return False
        ask = job.ask
        cache = self.cache
        blocks = ask.blocks
        held = cache.match(blocks)
        cached = sum([number & LENGTH for number in blocks[:held]])
        output = 1 if self.prefill_only else ask.output_tokens
        private = ask.prompt_tokens - cached + output
        if not cache.fits(cache.need(blocks, held, private)):
            return False
        cache.pin(blocks, held)
        cache.reserve(private)
        job.held = held
        job.admitted_s = now_s
        # What is left of the reservation once the prompt's blocks are kept: the output, and what no block holds.
        job.private = private - sum([number & LENGTH for number in blocks[held:]])
        if self.shared is not None:
            cached = sum([number & LENGTH for number in blocks[: self.shared.match(blocks)]])
        elif job.loaded:
            cached = ask.prompt_tokens
        cached = min(cached, ask.prompt_tokens - 1)  # the last token is always computed: it gives the first logits
        job.position = cached
        left = ask.prompt_tokens - cached
        if left != job.to_compute:
            cost_s = self.profile.prefill_time(left, cached)
            self.waiting_s += cost_s - job.cost_s
            job.cost_s = cost_s
        job.left = job.to_compute = left
        if not job.loaded:
            job.cached = cached
            self.queries += ask.prompt_tokens
            self.hits += cached
        return True

    def _span_s(self, steps: int) -> float:
        return steps * self._base_s + self.profile.context_s * self.running * 0.5 * steps * (steps - 1)

    def _cut(self, now_s: float) -> None:
        """Let a span end with the step that is running now."""
        elapsed = now_s - self._started_s
        slope = 0.5 * self.profile.context_s * self.running
        if slope > 0:
            linear = self._base_s - slope
            steps = int((sqrt(linear * linear + 4 * slope * elapsed) - linear) / (2 * slope))
        else:
            steps = int(elapsed / self._base_s)
        steps = max(1, steps)
        while self._span_s(steps) < elapsed:
            steps += 1
        if steps < self._span:
            self._span = steps
            self.due_s = self._started_s + self._span_s(steps)
            self.version += 1
