"""What a simulation is fed with: requests in the order of their arrival, and those that answers bring about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from controlplane.simulation.prompt import Ask


class Workload(Protocol):
    """One run's requests; a fresh one is made for each run, and equal seeds give equal requests.

    ``length_s`` is how long requests are made; those in flight then are served to their end.
    """

    name: str
    length_s: float
    #: Requests that are expected in all, for a progress bar; 0 when the answers decide.
    expected: int

    def arrivals(self) -> Iterator[Ask]:
        """Return the requests that come whatever the answers, ordered by ``at_s``."""

    def answered(self, ask: Ask, now_s: float) -> Ask | None:
        """Return what the user of ``ask`` asks next (``at_s`` is not before ``now_s``); None: nothing."""
