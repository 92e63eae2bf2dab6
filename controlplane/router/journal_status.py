"""What watches the decisions, as RoutingService.Status tells of it: shadow policies and the journal."""

from __future__ import annotations

from controlplane.router.journal import JournalledCore
from controlplane.routing.core import RoutingCore
from dataplane.pb import routing_pb2 as pb


def shadows(core: RoutingCore) -> list[pb.ShadowStatus]:
    """Return what each model's shadow would have done."""
    return [
        pb.ShadowStatus(
            model=told.model,
            policy=told.policy,
            parameters=told.parameters,
            share=told.share,
            decisions=told.decisions,
            agreed=told.agreed,
            routed_s=told.routed_s,
            shadow_s=told.shadow_s,
            routed_regret_s=told.routed_regret_s,
            shadow_regret_s=told.shadow_regret_s,
            failures=told.failures,
            off=told.off,
        )
        for told in (shadow.counts() for shadow in core.shadows.values())
    ]


def journal(core: RoutingCore) -> pb.JournalStatus | None:
    """Return the counts of the present journal; None: none is written."""
    told = core.journal.counts() if isinstance(core, JournalledCore) and core.journal is not None else None
    if told is None:
        return None
    return pb.JournalStatus(
        run=told.run,
        share=told.share,
        lines=told.lines,
        dropped=told.dropped,
        lost=told.lost,
        pending_bytes=told.pending_bytes,
    )
