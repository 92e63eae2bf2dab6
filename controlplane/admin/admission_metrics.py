"""The queues of saturated models, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dataplane.pb import routing_pb2

#: Entries that are shown: a cluster has at most 1,024 models, each with three priorities.
MAX_ENTRIES = 3 * 1_024

_LABELS = ("model", "priority")
_GAUGES = (
    ("waiting", "admission_waiting", "Requests that wait."),
    ("waiting_tokens", "admission_waiting_tokens", "Prompt tokens of the requests that wait."),
)
_COUNTERS = (
    ("waited", "admission_waited", "Requests that had to wait."),
    ("released", "admission_released", "Of these, let go."),
    ("left", "admission_left", "Of these, whose client left."),
    ("released_waited_s", "admission_wait_seconds", "Seconds that the released ones waited, in all."),
)


def families(status: routing_pb2.RouterStatusResponse) -> Iterable[Metric]:
    """Yield every family; empty ones when no model has admission."""
    entries = status.admissions[:MAX_ENTRIES]
    for field, name, text in _GAUGES:
        gauge = GaugeMetricFamily(f"slipstream_{name}", text, labels=_LABELS)
        for one in entries:
            gauge.add_metric((one.model, one.priority), getattr(one, field))
        yield gauge
    for field, name, text in _COUNTERS:
        counter = CounterMetricFamily(f"slipstream_{name}", text, labels=_LABELS)
        for one in entries:
            counter.add_metric((one.model, one.priority), getattr(one, field))
        yield counter
    shed = CounterMetricFamily("slipstream_admission_shed", "Told to come back later.", labels=(*_LABELS, "reason"))
    for one in entries:
        for reason, count in sorted(one.shed.items()):
            shed.add_metric((one.model, one.priority, reason), count)
    yield shed
