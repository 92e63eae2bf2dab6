"""How fast an engine is: the constants behind the time of one step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One engine's constants. Seconds, tokens, requests.

    A step that decodes ``n`` sequences with ``c`` tokens of context in all, and prefills chunks of ``t`` tokens at
    mean position ``p``, takes ``step_base_s + prefill_s * t + attention_s * t * p + sequence_s * n + context_s * c``.
    """

    name: str
    step_base_s: float
    prefill_s: float
    attention_s: float
    sequence_s: float
    context_s: float
    kv_capacity_tokens: int
    max_batched_tokens: int = 8_192
    max_running: int = 256
    kv_transfer_s: float = 3e-6
    """Seconds to pull one token's KV from a prefill replica."""

    def prefill_time(self, tokens: int, before: int) -> float:
        """Return the seconds that ``tokens`` of prefill after ``before`` known ones add to steps."""
        return tokens * (self.prefill_s + self.attention_s * (before + 0.5 * tokens))

    def scaled(self, factor: float) -> EngineProfile:
        """Return an engine that takes ``factor`` times as long for everything."""
        return EngineProfile(
            f"{self.name}*{factor:g}",
            self.step_base_s * factor,
            self.prefill_s * factor,
            self.attention_s * factor,
            self.sequence_s * factor,
            self.context_s * factor,
            self.kv_capacity_tokens,
            self.max_batched_tokens,
            self.max_running,
            self.kv_transfer_s,
        )


#: An 8B model on one large GPU: 25,000 prompt tokens a second, 450,000 tokens of KV. Assumed, not measured.
G8B = EngineProfile(
    name="g8b",
    step_base_s=7e-3,
    prefill_s=40e-6,
    attention_s=1.3e-9,
    sequence_s=20e-6,
    context_s=56e-9,
    kv_capacity_tokens=450_000,
)

PROFILES = {G8B.name: G8B}
