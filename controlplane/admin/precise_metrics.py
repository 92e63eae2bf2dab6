"""What the router knows of precise models' caches, for Prometheus; nothing while no model is precise."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dataplane.pb import routing_pb2

#: Values that one label may take; the rest is left out, so that no spec can make the answer endless.
MAX_LABEL_VALUES = 1_000

_COUNTS = (
    ("matched", "matched", "Requests routed by what replicas really cache."),
    ("tokenised", "prompts_tokenised", "Prompts that became tokens, in time or not."),
    ("messages", "kv_event_batches", "Batches of KV events that engines published."),
    ("malformed", "kv_event_batches_malformed", "Of these, what could not be read."),
    ("strangers", "kv_event_batches_unknown", "Of these, from incarnations that are not there."),
    ("replayed", "kv_event_batches_replayed", "Batches that came by replay."),
    ("replay_failures", "kv_replay_failures", "Replays that no engine answered."),
    ("restarts", "kv_numbering_restarts", "Engines that began to count their batches again."),
)


def families(status: routing_pb2.RouterStatusResponse) -> Iterable[Metric]:
    """Yield every family."""
    if not status.HasField("precise"):
        return
    precise = status.precise
    for field, name, text in _COUNTS:
        yield CounterMetricFamily(f"slipstream_precise_{name}", text, value=getattr(precise, field))
    for name, text, counts in (
        ("fallbacks", "Requests for precise models that went by their text, by reason.", precise.fallbacks),
        ("kv_events_ignored", "KV events that could not be true, by reason.", precise.ignored),
    ):
        family = CounterMetricFamily(f"slipstream_precise_{name}", text, labels=("reason",))
        for reason, count in sorted(counts.items())[:MAX_LABEL_VALUES]:
            family.add_metric((reason,), count)
        yield family
    for field, text in (
        ("blocks", "Blocks that the index knows replicas to hold, each tier counted."),
        ("replicas", "Replicas that are followed."),
        ("incomplete", "Of these, with events missing for good."),
    ):
        gauge = GaugeMetricFamily(f"slipstream_precise_{field}", text, labels=("model",))
        for model in precise.models[:MAX_LABEL_VALUES]:
            gauge.add_metric((model.model,), getattr(model, field))
        yield gauge
