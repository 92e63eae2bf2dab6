"""What the router knows, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from prometheus_client.core import Metric

from controlplane.admin import router_metrics
from dataplane.pb import routing_pb2 as pb


def samples(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """Return (name, label values...) -> value."""
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def load(server: str, **values: float) -> pb.ReplicaLoad:
    made = pb.ReplicaLoad(server=server, pool="p", telemetry_age_s=-1.0, kv_use=-1.0, ttft_s=-1.0)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_predictions_are_compared() -> None:
    status = pb.RouterStatusResponse(
        cache_predictions=[
            pb.CachePrediction(model="m", predicted_tokens=300, reported_tokens=200),
            pb.CachePrediction(model="m", adapter="sql", predicted_tokens=50),
            pb.CachePrediction(model="new"),
        ]
    )
    found = samples(router_metrics.families(status))
    assert found["slipstream_prefix_prediction_ratio", "m", ""] == 1.5
    assert found["slipstream_prefix_prediction_ratio", "m", "sql"] == 50.0
    assert ("slipstream_prefix_prediction_ratio", "new", "") not in found
    assert found["slipstream_predicted_cached_tokens_total", "m", ""] == 300
    assert found["slipstream_reported_cached_tokens_total", "m", ""] == 200


def test_reports_and_readings_are_counted() -> None:
    status = pb.RouterStatusResponse(
        reports={"finished": 7}, reports_ignored={"replayed": 2}, reports_dropped=1, telemetry_reads=9
    )
    found = samples(router_metrics.families(status))
    assert found["slipstream_reports_total", "finished"] == 7
    assert found["slipstream_reports_ignored_total", "replayed"] == 2
    assert found["slipstream_reports_dropped_total",] == 1
    assert found["slipstream_telemetry_reads_total",] == 9


def test_loads_by_pool_and_by_replica() -> None:
    status = pb.RouterStatusResponse(
        replicas=[
            load("p-0.g1", waiting=2, queued_tokens=500, context_tokens=900, telemetry_age_s=3.0, kv_use=0.5),
            load("p-1.g2", waiting=1, queued_tokens=70, telemetry_age_s=8.0),
            load("p-2.g3"),
        ]
    )
    found = samples(router_metrics.families(status))
    assert found["slipstream_waiting", "p"] == 3
    assert found["slipstream_queued_tokens", "p"] == 570
    assert found["slipstream_context_tokens", "p"] == 900
    assert found["slipstream_telemetry_never", "p"] == 1
    assert found["slipstream_telemetry_age_seconds", "p"] == 8.0
    assert found["slipstream_replica_queued_tokens", "p", "p-1"] == 70
    assert found["slipstream_replica_kv_use", "p", "p-0"] == 0.5
    assert ("slipstream_replica_kv_use", "p", "p-1") not in found
    assert ("slipstream_replica_telemetry_age_seconds", "p", "p-2") not in found


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_metrics, "MAX_LABEL_VALUES", 2)
    monkeypatch.setattr(router_metrics, "MAX_REPLICAS_SHOWN", 3)
    loads = [load(f"p-{i}.g1", waiting=1) for i in range(10)]
    for i, one in enumerate(loads):
        one.pool = f"pool-{i}"
    models = [pb.CachePrediction(model=f"m{i}", predicted_tokens=1) for i in range(10)]
    found = samples(router_metrics.families(pb.RouterStatusResponse(replicas=loads, cache_predictions=models)))
    assert {key[1]: value for key, value in found.items() if key[0] == "slipstream_waiting"} == {
        "pool-0": 1,
        "pool-1": 1,
        "other": 8,
    }
    assert sum(key[0] == "slipstream_replica_waiting" for key in found) == 3
    assert sum(key[0] == "slipstream_prefix_prediction_ratio" for key in found) == 2
