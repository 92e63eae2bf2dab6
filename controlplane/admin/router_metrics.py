"""What the router knows of its replicas and of its own predictions, for Prometheus."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dataplane.pb import routing_pb2

#: Values that one label may take; the rest is summed up as "other", so that no spec can make the answer endless.
MAX_LABEL_VALUES = 1_000
#: Replicas that are shown each by its name; of larger clusters pools are.
MAX_REPLICAS_SHOWN = 256


def families(status: routing_pb2.RouterStatusResponse) -> Iterable[Metric]:
    """Yield every family."""
    yield from _predictions(status.cache_predictions)
    yield from _reports(status)
    yield from _telemetry(status)
    yield from _replicas(status.replicas)


def _predictions(found: Sequence[routing_pb2.CachePrediction]) -> Iterable[Metric]:
    labels = ("model", "adapter")
    predicted = CounterMetricFamily(
        "slipstream_predicted_cached_tokens",
        "Prompt tokens predicted to be cached, of reported requests.",
        labels=labels,
    )
    reported = CounterMetricFamily(
        "slipstream_reported_cached_tokens", "Prompt tokens that engines found cached, of the same.", labels=labels
    )
    ratio = GaugeMetricFamily(
        "slipstream_prefix_prediction_ratio",
        "Predicted by reported cached tokens since the start; above 1: too much was predicted.",
        labels=labels,
    )
    for one in found[:MAX_LABEL_VALUES]:
        names = (one.model, one.adapter)
        predicted.add_metric(names, one.predicted_tokens)
        reported.add_metric(names, one.reported_tokens)
        if one.predicted_tokens or one.reported_tokens:
            ratio.add_metric(names, one.predicted_tokens / max(1, one.reported_tokens))
    return predicted, reported, ratio


def _reports(status: routing_pb2.RouterStatusResponse) -> Iterable[Metric]:
    taken = CounterMetricFamily("slipstream_reports", "Reports taken from engines.", labels=("kind",))
    for kind, count in sorted(status.reports.items()):
        taken.add_metric((kind,), count)
    ignored = CounterMetricFamily("slipstream_reports_ignored", "Reports ignored, by reason.", labels=("reason",))
    for reason, count in sorted(status.reports_ignored.items()):
        ignored.add_metric((reason,), count)
    dropped = CounterMetricFamily(
        "slipstream_reports_dropped", "Reports that engines could not deliver.", value=status.reports_dropped
    )
    return taken, ignored, dropped


def _telemetry(status: routing_pb2.RouterStatusResponse) -> Iterable[Metric]:
    yield CounterMetricFamily("slipstream_telemetry_reads", "/metrics pages read.", value=status.telemetry_reads)
    yield CounterMetricFamily(
        "slipstream_telemetry_failures", "/metrics pages that could not be.", value=status.telemetry_failures
    )
    yield CounterMetricFamily(
        "slipstream_engine_restarts_seen",
        "Engines that began again within one generation.",
        value=status.engine_restarts_seen,
    )


def _replicas(loads: Sequence[routing_pb2.ReplicaLoad]) -> Iterable[Metric]:
    by_pool: defaultdict[str, Counter[str]] = defaultdict(Counter)
    oldest: dict[str, float] = {}
    for load in loads:
        pool = load.pool if load.pool in by_pool or len(by_pool) < MAX_LABEL_VALUES else "other"
        by_pool[pool].update(waiting=load.waiting, queued=load.queued_tokens, context=load.context_tokens)
        by_pool[pool].update(never=load.telemetry_age_s < 0)
        oldest[pool] = max(oldest.get(pool, 0.0), load.telemetry_age_s)
    for name, text, key in (
        ("slipstream_waiting", "Requests without a first byte.", "waiting"),
        ("slipstream_queued_tokens", "Uncached prompt tokens of these, as predicted.", "queued"),
        ("slipstream_context_tokens", "Prompt and expected output of all in flight.", "context"),
        ("slipstream_telemetry_never", "Replicas whose figures were never read.", "never"),
    ):
        family = GaugeMetricFamily(name, text, labels=("pool",))
        for pool, sums in by_pool.items():
            family.add_metric((pool,), sums[key])
        yield family
    age = GaugeMetricFamily("slipstream_telemetry_age_seconds", "Age of the oldest reading.", labels=("pool",))
    for pool, seconds in oldest.items():
        age.add_metric((pool,), seconds)
    yield age
    yield from _each(loads[:MAX_REPLICAS_SHOWN])


def _each(loads: Sequence[routing_pb2.ReplicaLoad]) -> Iterable[Metric]:
    """Yield what is shown of single replicas; a restarted one keeps its label."""
    shown: tuple[tuple[str, str, str], ...] = (
        ("slipstream_replica_waiting", "Requests without a first byte.", "waiting"),
        ("slipstream_replica_queued_tokens", "Uncached prompt tokens of these, as predicted.", "queued_tokens"),
        ("slipstream_replica_prefill_tokens_per_second", "Prefill speed as learned.", "prefill_tokens_per_s"),
        ("slipstream_replica_prediction_trust", "Part of a predicted cache hit that is believed.", "trust"),
        ("slipstream_replica_kv_use", "Part of the KV cache in use; absent: not known.", "kv_use"),
        ("slipstream_replica_ttft_seconds", "Mean of the engine's own, newest; absent: none.", "ttft_s"),
        ("slipstream_replica_telemetry_age_seconds", "Age of the newest reading; absent: none.", "telemetry_age_s"),
    )
    newest = {load.server.rpartition(".g")[0]: load for load in loads}
    for name, text, field in shown:
        family = GaugeMetricFamily(name, text, labels=("pool", "replica"))
        for replica, load in newest.items():
            value = getattr(load, field)
            if value >= 0:
                family.add_metric((load.pool, replica), value)
        yield family
