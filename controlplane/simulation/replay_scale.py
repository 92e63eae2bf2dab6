"""By how much a model's replicas differ from what the router learned of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.simulation.profile import EngineProfile


@dataclass(frozen=True, slots=True)
class Scale:
    """Factors of the times that prefill and decode steps take."""

    prefill: float = 1.0
    decode: float = 1.0

    def applied(self, profile: EngineProfile) -> EngineProfile:
        """Return the profile of such a replica."""
        return replace(
            profile,
            prefill_s=profile.prefill_s * self.prefill,
            attention_s=profile.attention_s * self.prefill,
            step_base_s=profile.step_base_s * self.decode,
            sequence_s=profile.sequence_s * self.decode,
            context_s=profile.context_s * self.decode,
        )
