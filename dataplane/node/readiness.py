"""Whether a replica answers, judged from a row of probes. PURE."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Failed probes in a row that take a replica out of rotation. One or two are a busy event loop.
FAILURES_TO_LOSE = 3
#: Between probes while it does not answer: how late a start or a recovery is seen.
SEEKING_INTERVAL_S = 0.2
#: Between probes while it answers.
READY_INTERVAL_S = 1.0
#: A health route that takes longer counts as failed: with the above, a hung replica is out after 4.4 s at most.
PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the probes so far say. ``was_ready`` separates one that starts from one that stopped answering."""

    ready: bool = False
    was_ready: bool = False
    failures: int = 0
    detail: str = "not probed yet"

    def after(self, answered: bool, detail: str) -> Readiness:
        """Return the judgement after one more probe; one success is enough to be ready."""
        if answered:
            return Readiness(ready=True, was_ready=True, failures=0, detail="")
        failures = self.failures + 1
        still = self.ready and failures < FAILURES_TO_LOSE
        return replace(self, ready=still, failures=failures, detail="" if still else detail)

    @property
    def next_probe_s(self) -> float:
        """Seconds until the next probe: soon while it does not answer or has just failed one."""
        return READY_INTERVAL_S if self.ready and not self.failures else SEEKING_INTERVAL_S
