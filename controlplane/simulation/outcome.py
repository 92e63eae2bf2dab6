"""What a run showed: the figures of one chooser on one workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.simulation.engine import Job


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests in flight at one time: the mean over the engines, and the most."""

    at_s: float
    mean: float
    most: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Times in seconds; rates from 0 to 1; ``imbalance`` is the mean of most over mean in flight.

    ``ttft_s`` and ``tpot_s`` are sorted, one for each measured request that was answered (``tpot_s``: with more than
    one token). What is measured arrived after the first part of the run, which fills caches and queues.
    """

    name: str
    requests: int
    answered: int
    hit_rate: float
    imbalance: float
    requests_per_s: float
    end_to_end_mean_s: float
    ttft_s: Sequence[float] = field(repr=False)
    tpot_s: Sequence[float] = field(repr=False)
    load: Sequence[Sample] = field(repr=False)

    @property
    def success_rate(self) -> float:
        """Part of the measured requests that was answered to its end."""
        return self.answered / self.requests if self.requests else 0.0

    @property
    def ttft_mean_s(self) -> float:
        """Mean time to first token."""
        return mean(self.ttft_s)

    @property
    def ttft_p50_s(self) -> float:
        """Median time to first token."""
        return quantile(self.ttft_s, 0.5)

    @property
    def ttft_p99_s(self) -> float:
        """99th percentile of the time to first token."""
        return quantile(self.ttft_s, 0.99)

    @property
    def tpot_mean_s(self) -> float:
        """Mean over requests of the time per output token after the first."""
        return mean(self.tpot_s)

    @property
    def tpot_p99_s(self) -> float:
        """99th percentile of the same."""
        return quantile(self.tpot_s, 0.99)

    def summary(self) -> dict[str, float]:
        """Return the figures that ``slipstream simulate --json`` prints."""
        return {
            "ttft_mean_s": self.ttft_mean_s,
            "ttft_p99_s": self.ttft_p99_s,
            "tpot_mean_s": self.tpot_mean_s,
            "hit_rate": self.hit_rate,
            "success_rate": self.success_rate,
            "imbalance": self.imbalance,
        }


class Record:
    """Collects a run's figures."""

    def __init__(self, name: str, from_s: float, until_s: float) -> None:
        self._name = name
        self._from_s = from_s
        self._until_s = until_s
        self._requests = 0
        self._answered = 0
        self._prompt = 0
        self._cached = 0
        self._end_to_end = 0.0
        self._ttft: list[float] = []
        self._tpot: list[float] = []
        self._load: list[Sample] = []

    def arrived(self, now_s: float) -> None:
        """Count a request, when it is in the measured part."""
        if now_s >= self._from_s:
            self._requests += 1

    def ended(self, job: Job) -> None:
        """Take a job that was answered."""
        if job.arrived_s < self._from_s:
            return
        ask = job.ask
        self._answered += 1
        self._prompt += ask.prompt_tokens
        self._cached += job.cached
        self._end_to_end += job.ended_s - job.arrived_s
        self._ttft.append(job.first_s - job.arrived_s)
        if ask.output_tokens > 1:
            self._tpot.append((job.ended_s - job.first_s) / (ask.output_tokens - 1))

    def sample(self, now_s: float, in_flight: Sequence[int]) -> None:
        """Note how busy the engines are."""
        self._load.append(Sample(now_s, sum(in_flight) / len(in_flight), max(in_flight)))

    def outcome(self) -> Outcome:
        """Return the figures."""
        ratios = [
            sample.most / sample.mean
            for sample in self._load
            if sample.mean and self._from_s <= sample.at_s <= self._until_s
        ]
        span_s = self._until_s - self._from_s
        return Outcome(
            name=self._name,
            requests=self._requests,
            answered=self._answered,
            hit_rate=self._cached / self._prompt if self._prompt else 0.0,
            imbalance=mean(ratios) if ratios else 1.0,
            requests_per_s=self._requests / span_s if span_s > 0 else 0.0,
            end_to_end_mean_s=self._end_to_end / self._answered if self._answered else 0.0,
            ttft_s=sorted(self._ttft),
            tpot_s=sorted(self._tpot),
            load=self._load,
        )


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
