"""What the router tells of itself and of every replica's load, as RoutingService.Status gives it."""

from __future__ import annotations

from controlplane.router import journal_status
from controlplane.router.counters import Counters
from controlplane.router.reports import Reports
from controlplane.router.telemetry import EngineTelemetry
from controlplane.router.topology import InstalledTopology
from controlplane.routing.admission.gate import Depth
from controlplane.routing.core import RoutingCore
from controlplane.routing.figures import Load
from dataplane.pb import routing_pb2 as pb


def message(
    core: RoutingCore,
    installed: InstalledTopology,
    counters: Counters,
    reports: Reports,
    telemetry: EngineTelemetry,
    now_s: float,
) -> pb.RouterStatusResponse:
    """Return counts since the start and the load of every replica."""
    known = core.counters()
    return pb.RouterStatusResponse(
        topology_number=installed.number,
        topology_from_disk=installed.from_disk,
        topology_age_s=installed.age_s,
        decisions=known.decisions,
        errors=counters.errors,
        log_lines=counters.log_lines,
        log_lines_unmatched=known.unmatched + counters.log_lines_malformed,
        protocol_errors=counters.protocol_errors,
        receipts=known.receipts,
        replicas=[_load(load, telemetry) for load in core.loads(now_s)],
        decisions_by_reason=known.decisions_by_reason,
        cache_predictions=[
            pb.CachePrediction(
                model=one.model,
                adapter=one.adapter,
                predicted_tokens=one.predicted_tokens,
                reported_tokens=one.reported_tokens,
            )
            for one in core.cache_predictions()
        ],
        reports=reports.taken,
        reports_ignored=reports.ignored,
        reports_dropped=reports.dropped,
        telemetry_reads=telemetry.reads,
        telemetry_failures=telemetry.failures,
        engine_restarts_seen=telemetry.restarts,
        shadows=journal_status.shadows(core),
        journal=journal_status.journal(core),
        admissions=[_admission(depth) for depth in core.admissions()],
    )


def _admission(depth: Depth) -> pb.AdmissionStatus:
    counts = depth.counts
    return pb.AdmissionStatus(
        model=depth.model,
        priority=depth.priority,
        waiting=depth.waiting,
        waiting_tokens=depth.tokens,
        waited=counts.waited,
        released=counts.released,
        left=counts.left,
        released_waited_s=counts.released_waited_s,
        shed={str(shed): count for shed, count in counts.shed.items()},
    )


def _load(load: Load, telemetry: EngineTelemetry) -> pb.ReplicaLoad:
    source = telemetry.sources.get(load.server)
    page = source.page if source is not None else None
    return pb.ReplicaLoad(
        server=load.server,
        pool=load.pool,
        in_flight=load.in_flight,
        decisions=load.decisions,
        first_byte_ms=load.first_byte_ms,
        waiting=load.waiting,
        queued_tokens=load.queued_tokens,
        context_tokens=load.context_tokens,
        telemetry_age_s=load.telemetry_age_s,
        kv_use=load.kv_use,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        trust=load.trust,
        ttft_s=-1.0 if source is None else source.ttft_s,
        engine_running=0 if page is None else page.running,
        engine_waiting=0 if page is None else page.waiting,
    )
