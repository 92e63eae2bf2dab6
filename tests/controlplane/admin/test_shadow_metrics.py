from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from controlplane.admin.shadow_metrics import families
from dataplane.pb.routing_pb2 import JournalStatus, RouterStatusResponse, ShadowStatus


def exposition(status: RouterStatusResponse) -> list[str]:
    class Shadows(Collector):
        def collect(self) -> object:  # type: ignore[override]
            return families(status)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Shadows())
    return generate_latest(registry).decode().splitlines()


def test_shadows_and_the_journal_are_told() -> None:
    shadow = ShadowStatus(model="m", policy="cost", decisions=200, agreed=50, routed_s=20.0, shadow_s=10.5, failures=8)
    shadow.off = True
    journal = JournalStatus(run="r", share=1.0, lines=900, dropped=3, lost=4, pending_bytes=77)
    told = exposition(RouterStatusResponse(shadows=[shadow], journal=journal))
    for line in (
        'slipstream_shadow_decisions_total{model="m",policy="cost"} 200.0',
        'slipstream_shadow_agreed_total{model="m",policy="cost"} 50.0',
        'slipstream_shadow_routed_seconds_total{model="m",policy="cost"} 20.0',
        'slipstream_shadow_shadow_seconds_total{model="m",policy="cost"} 10.5',
        'slipstream_shadow_failures_total{model="m",policy="cost"} 8.0',
        'slipstream_shadow_off{model="m",policy="cost"} 1.0',
        "slipstream_journal_lines_total 900.0",
        'slipstream_journal_lines_missing_total{reason="slow_disk"} 3.0',
        'slipstream_journal_lines_missing_total{reason="refused"} 4.0',
        "slipstream_journal_pending_bytes 77.0",
    ):
        assert line in told


def test_without_them_nothing_is_told() -> None:
    assert not [line for line in exposition(RouterStatusResponse()) if not line.startswith("#")]
