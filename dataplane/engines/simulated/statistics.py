"""What the engine counts, under the names that vLLM's /metrics gives it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataplane.engines.simulated.sequence import Sequence

_REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
REQUEST_BUCKETS = (*_REQUEST_S, 960.0, 1920.0, 7680.0)
_SLOW_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TOKEN_TIME_BUCKETS = _SLOW_S
_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
FIRST_TOKEN_BUCKETS = (*_FIRST_S, 80.0, 160.0, 640.0, 2560.0)
STEP_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
CHOICE_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


def token_buckets(max_model_tokens: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, ... up to the context length (vLLM's build_1_2_5_buckets)."""
    buckets: list[float] = []
    scale = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * scale > max_model_tokens:
                return tuple(buckets)
            buckets.append(float(mantissa * scale))
        scale *= 10


class Histogram:
    """Counts per bucket (upper bounds, inclusive), and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        value = max(value, 0.0)  # a step may start up to one timer tick before its sequence came
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Statistics:
    """Counters and histograms since the start. Times in seconds."""

    def __init__(self, max_model_tokens: int = 2_048) -> None:
        tokens = token_buckets(max_model_tokens)
        self.prefix_queries = 0  # tokens looked up in the prefix cache
        self.prefix_hits = 0
        self.external_queries = 0
        self.external_hits = 0
        self.preemptions = 0
        self.prompt_tokens = 0
        self.computed_tokens = 0  # of them, computed here,
        self.local_hits = 0  # found in the prefix cache,
        self.transferred = 0  # and sent by a peer
        self.generation_tokens = 0
        self.finish = dict.fromkeys(FINISH_REASONS, 0)
        self.step_tokens = Histogram(STEP_BUCKETS)
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS)
        self.inter_token = Histogram(TOKEN_TIME_BUCKETS)
        self.per_output_token = Histogram(TOKEN_TIME_BUCKETS)
        self.end_to_end = Histogram(REQUEST_BUCKETS)
        self.queue = Histogram(REQUEST_BUCKETS)
        self.inference = Histogram(REQUEST_BUCKETS)
        self.prefill = Histogram(REQUEST_BUCKETS)
        self.decode = Histogram(REQUEST_BUCKETS)
        self.request_prompt = Histogram(tokens)
        self.request_generation = Histogram(tokens)
        self.request_max_generation = Histogram(tokens)
        self.request_max_tokens = Histogram(tokens)
        self.request_computed = Histogram(tokens)
        self.request_choices = Histogram(CHOICE_BUCKETS)
        self.request_preemptions = Histogram(PREEMPTION_BUCKETS)

    def step(self, tokens: int) -> None:
        """Count one engine step."""
        self.step_tokens.observe(tokens)

    def admitted(self, sequence: Sequence) -> None:
        """Count the prefix cache's answer for a new sequence."""
        prompt = len(sequence.prompt.tokens)
        self.prefix_queries += prompt
        self.prefix_hits += sequence.cached_tokens
        if sequence.prompt.remote:
            self.external_queries += prompt - sequence.cached_tokens
            self.external_hits += sequence.external_tokens

    def token(self, sequence: Sequence, now_s: float) -> None:
        """Count the token that the sequence is about to get."""
        if sequence.prompt.max_tokens:
            self.generation_tokens += 1
        if sequence.first_token_s >= 0:
            self.inter_token.observe(now_s - sequence.last_token_s)
            return
        prompt = len(sequence.prompt.tokens)
        self.prompt_tokens += prompt
        self.computed_tokens += prompt - sequence.cached_tokens - sequence.external_tokens
        self.local_hits += sequence.cached_tokens
        self.transferred += sequence.external_tokens
        self.first_token.observe(now_s - sequence.arrived_s)

    def finished(self, sequence: Sequence, reason: str) -> None:
        """Count a sequence that got all its tokens; its last token's time is its end."""
        end = sequence.last_token_s
        decode = end - sequence.first_token_s
        self.finish[reason] += 1
        self.end_to_end.observe(end - sequence.arrived_s)
        self.queue.observe(sequence.admitted_s - sequence.arrived_s)
        self.inference.observe(end - sequence.admitted_s)
        self.prefill.observe(sequence.first_token_s - sequence.admitted_s)
        self.decode.observe(decode)
        self.per_output_token.observe(decode / max(1, sequence.produced - 1))
        self.request_prompt.observe(len(sequence.prompt.tokens))
        self.request_generation.observe(sequence.produced)
        self.request_max_generation.observe(sequence.produced)
        self.request_max_tokens.observe(sequence.prompt.max_tokens)
        self.request_computed.observe(len(sequence.prompt.tokens) - sequence.cached_tokens)
        self.request_choices.observe(1)
        self.request_preemptions.observe(sequence.preemptions)

    def aborted(self) -> None:
        """Count a sequence whose client went away."""
        self.finish["abort"] += 1
