"""Shadow policies and the journal, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dataplane.pb import routing_pb2

#: Models that are shown; a cluster has at most as many.
MAX_MODELS = 1_024

_COUNTERS = (
    ("decisions", "Decisions that a shadow policy was asked for."),
    ("agreed", "Of these, the same replica."),
    ("routed_s", "Predicted seconds to the first byte where they were sent."),
    ("shadow_s", "Predicted seconds to the first byte where the shadow would have sent them."),
    ("routed_regret_s", "Predicted seconds over the best candidate, where they were sent."),
    ("shadow_regret_s", "Predicted seconds over the best candidate, where the shadow would have."),
    ("failures", "Exceptions in the shadow."),
)


def families(status: routing_pb2.RouterStatusResponse) -> Iterable[Metric]:
    """Yield every family; the share that agrees is ``agreed`` by ``decisions``, the gain the difference of seconds."""
    labels = ("model", "policy")
    for field, text in _COUNTERS:
        name = f"slipstream_shadow_{field.removesuffix('_s')}" + ("_seconds" if field.endswith("_s") else "")
        counter = CounterMetricFamily(name, text, labels=labels)
        for told in status.shadows[:MAX_MODELS]:
            counter.add_metric((told.model, told.policy), getattr(told, field))
        yield counter
    off = GaugeMetricFamily("slipstream_shadow_off", "1: it failed too often and is asked no more.", labels=labels)
    for told in status.shadows[:MAX_MODELS]:
        off.add_metric((told.model, told.policy), float(told.off))
    yield off
    if status.HasField("journal"):
        yield from _journal(status.journal)


def _journal(told: routing_pb2.JournalStatus) -> Iterable[Metric]:
    yield CounterMetricFamily("slipstream_journal_lines", "Lines handed to the journal's writer.", value=told.lines)
    missing = CounterMetricFamily(
        "slipstream_journal_lines_missing", "Lines that are not in the journal.", labels=("reason",)
    )
    missing.add_metric(("slow_disk",), told.dropped)
    missing.add_metric(("refused",), told.lost)
    yield missing
    yield GaugeMetricFamily("slipstream_journal_pending_bytes", "Lines that wait.", value=told.pending_bytes)
