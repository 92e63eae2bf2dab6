"""Runs as a comparison would give them."""

from __future__ import annotations

from benchmarks.load import LoadReport, Percentiles
from benchmarks.measure import Run
from benchmarks.replica import ReplicaStats


def a_run(
    system: str,
    cell: str,
    number: int,
    cpu_us: float,
    completed: int = 1_000,
    tokens: int = 1_000,
    ttft_ms: float = 20.0,
    refused: str = "",
) -> Run:
    """Return a run that cost ``cpu_us`` per request."""
    ttft = Percentiles(completed, ttft_ms, ttft_ms, ttft_ms + 1, ttft_ms + 2)
    tpot = Percentiles(completed, 10.0, 10.0, 10.1, 10.2)
    report = LoadReport(completed, completed, 0, tokens, 0, {}, 2.0, completed, tokens, 0.1, ttft, tpot, ttft)
    ingress = {system: cpu_us * completed / 1e6} if system != "direct" else {}
    counted = ReplicaStats(requests=completed, completed=completed, tokens=tokens)
    return Run(number, system, cell, 2.0, ingress, 0.1, 0.1, 0.05, counted, report, refused)
