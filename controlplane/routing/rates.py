"""How fast one replica works: learned from what is told of its requests, robust to noise and to bad hints.

Prefill is learned as a high quantile of the speeds seen, because a prefill that shares its steps with others looks
slower than the engine is; decode as one factor on the step time that the hints predict.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

#: Uncached prompt tokens below which fixed costs, not speed, make up a prefill's time.
MIN_PREFILL_TOKENS = 512
#: The same where it is only predicted how many are uncached.
MIN_GUESSED_TOKENS = 4_096
#: Output tokens below which a stream's time says little of the engine's steps.
MIN_OUTPUT_TOKENS = 16
#: Part of a surprise that is believed, and the quantile of prefill speeds that is sought.
LEARNING_WEIGHT = 0.1
PREFILL_QUANTILE = 0.8
#: One sample moves a rate as if it were off by at most this factor.
MAX_SURPRISE = log(2.0)
#: Factor between hint and belief beyond which nothing is learned: clocks or reports that went wrong.
MAX_DRIFT = 100.0


@dataclass(frozen=True, slots=True)
class Hints:
    """What is believed of an engine before it has worked.

    ``prefill_tokens_per_s`` is for short prompts; at ``attention_tokens`` of context a token takes twice as long.
    A step that decodes n sequences with c tokens of context in all takes
    ``step_s + sequence_s * n + context_s * c`` seconds.
    """

    prefill_tokens_per_s: float
    attention_tokens: float
    step_s: float
    sequence_s: float
    context_s: float


class Rates:
    """One replica's rates; ``decode_factor`` multiplies the hints' step time."""

    __slots__ = ("decode_factor", "decode_samples", "hints", "prefill_samples", "prefill_tokens_per_s")

    def __init__(self, hints: Hints) -> None:
        self.hints = hints
        self.prefill_tokens_per_s = hints.prefill_tokens_per_s
        self.decode_factor = 1.0
        self.prefill_samples = 0
        self.decode_samples = 0

    def hint(self, hints: Hints) -> None:
        """Take other hints; what was learned under the old ones is kept, for it is nearer to the truth."""
        if hints == self.hints:
            return
        old = self.hints
        self.hints = hints
        if not self.prefill_samples:
            self.prefill_tokens_per_s = hints.prefill_tokens_per_s
        if self.decode_samples:
            self.decode_factor *= old.step_s / hints.step_s

    def assume(self, prefill_tokens_per_s: float) -> None:
        """Take the speed that others of the same kind showed, until this one has shown its own."""
        if not self.prefill_samples:
            self.prefill_tokens_per_s = prefill_tokens_per_s

    def work(self, tokens: int, cached: int) -> int:
        """Return the prefill of ``tokens`` after ``cached`` ones, as a number of tokens of a short prompt."""
        return int(tokens * (1.0 + (cached + 0.5 * tokens) / self.hints.attention_tokens))

    def step_s(self, sequences: int, context_tokens: int) -> float:
        """Return the seconds of one decode step with so many sequences."""
        hints = self.hints
        return self.decode_factor * (hints.step_s + hints.sequence_s * sequences + hints.context_s * context_tokens)

    def saw_prefill(self, tokens: int, cached: int, seconds: float) -> None:
        """Learn from ``tokens`` after ``cached`` ones that an engine says it computed in ``seconds``."""
        if tokens >= MIN_PREFILL_TOKENS:
            self._learn_prefill(self.work(tokens, cached), seconds, PREFILL_QUANTILE)

    def guessed_prefill(self, tokens: int, work: int, seconds: float) -> None:
        """Learn from ``tokens`` that were predicted to be computed before a first byte.

        The engine may have had more of them in its cache, so this is no bound.
        """
        if tokens >= MIN_GUESSED_TOKENS:
            self._learn_prefill(work, seconds, 0.5)

    def _learn_prefill(self, work: int, seconds: float, quantile: float) -> None:
        if seconds <= 0.0:
            return
        surprise = _bounded(log(work / seconds / self.prefill_tokens_per_s))
        share = quantile if surprise > 0 else 1.0 - quantile
        weight = max(LEARNING_WEIGHT, 0.5 / (1 + self.prefill_samples)) * 2.0 * share
        rate = self.prefill_tokens_per_s * exp(weight * surprise)
        hint = self.hints.prefill_tokens_per_s
        self.prefill_tokens_per_s = min(max(rate, hint / MAX_DRIFT), hint * MAX_DRIFT)
        self.prefill_samples += 1

    def saw_decode(self, tokens: int, seconds: float, sequences: int, context_tokens: int) -> None:
        """Learn from ``tokens`` that came in ``seconds`` beside so many sequences."""
        if tokens < MIN_OUTPUT_TOKENS or seconds <= 0.0:
            return
        surprise = _bounded(log(seconds / tokens / self.step_s(sequences, context_tokens)))
        weight = max(LEARNING_WEIGHT, 0.5 / (1 + self.decode_samples))
        self.decode_factor = min(max(self.decode_factor * exp(weight * surprise), 1 / MAX_DRIFT), MAX_DRIFT)
        self.decode_samples += 1


def _bounded(surprise: float) -> float:
    return min(max(surprise, -MAX_SURPRISE), MAX_SURPRISE)
