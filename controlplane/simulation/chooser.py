"""Who says which replica answers: the router's own routing core, or an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.simulation.engine import Engine, Job

#: Answers of ``choose`` that name no engine. WAITING: ``released`` tells of it later.
REFUSED = -1
WAITING = -2


class Chooser(Protocol):
    """Chooses an engine for each request and hears what became of it. Times are seconds since the start."""

    name: str
    #: Seconds between two reads of one engine's gauges; 0: never.
    scrape_interval_s: float

    def start(self, engines: Sequence[Engine], prefill_engines: Sequence[Engine]) -> None:
        """Take the engines that may be chosen, and those that prefill for them."""

    def choose(self, job: Job, now_s: float) -> int:
        """Return an engine's index, REFUSED or WAITING."""

    def released(self, now_s: float) -> tuple[list[tuple[Job, int]], bool]:
        """Return the waiting jobs that are decided now, each with its engine or REFUSED, and whether more wait."""

    def first_byte(self, job: Job, now_s: float) -> None:
        """Hear that a job has its first token."""

    def ended(self, job: Job, now_s: float) -> None:
        """Hear that a job has its last token, or was refused by its engine (no first token)."""

    def scrape(self, engine: Engine, now_s: float) -> None:
        """Read an engine's gauges."""
