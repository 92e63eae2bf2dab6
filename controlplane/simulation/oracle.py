"""The bounds that policies are measured against: choosers that see the engines themselves."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.simulation.cache import LENGTH
from controlplane.simulation.engine import Engine, Job

#: Part of a prefill that each request in flight there pays for: its share of steps that grew.
EXTERNALITY = 0.1
#: Weight of the decode steps that a request makes longer for the others and for itself.
DECODE_WEIGHT = 0.1


class Oracle:
    """The formula of the policy ``cost`` over all engines, with what no router knows: each engine's true cache, its
    true queue, and the true output length of every request. Greedy: no bound in theory, but nobody has more to go by.
    """

    scrape_interval_s = 0.0

    def __init__(self, name: str = "oracle") -> None:
        self.name = name
        self._engines: Sequence[Engine] = ()
        self._turn = 0

    def start(self, engines: Sequence[Engine], prefill_engines: Sequence[Engine]) -> None:
        """Take the engines."""
        self._engines = engines

    def choose(self, job: Job, now_s: float) -> int:
        """Return the engine with the least predicted cost; equals take turns."""
        engines = self._engines
        count = len(engines)
        self._turn = turn = (self._turn + 1) % count
        best = float("inf")
        chosen = turn
        for place in range(turn, turn + count):
            engine = engines[place - count] if place >= count else engines[place]
            score = predicted_cost(engine, job)
            if score < best:
                best = score
                chosen = engine.index
        return chosen

    def released(self, now_s: float) -> tuple[list[tuple[Job, int]], bool]:
        """Nothing waits."""
        return [], False

    def first_byte(self, job: Job, now_s: float) -> None:
        """Nothing to learn."""

    def ended(self, job: Job, now_s: float) -> None:
        """Nothing to learn."""

    def scrape(self, engine: Engine, now_s: float) -> None:
        """Nothing to learn."""


def predicted_cost(engine: Engine, job: Job) -> float:
    """Return predicted seconds: queue, own prefill and what it costs others, decoding, and the wait for KV room."""
    ask = job.ask
    profile = engine.profile
    in_flight = engine.in_flight + engine.promised
    held = engine.cached_blocks(ask)
    cached = sum([number & LENGTH for number in ask.blocks[:held]]) if held else 0
    left = max(1, ask.prompt_tokens - cached)
    own = left * (profile.prefill_s + profile.attention_s * (cached + 0.5 * left))
    score = max(0.0, engine.waiting_s) + own * (1.0 + EXTERNALITY * in_flight)
    decode = profile.sequence_s * in_flight + profile.context_s * engine.outlook
    score += DECODE_WEIGHT * ask.output_tokens * decode
    return score + engine.room_wait_s(ask.prompt_tokens - cached + ask.output_tokens)
