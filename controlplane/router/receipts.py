"""The routing core's receipts as protobuf."""

from __future__ import annotations

from controlplane.routing.receipts import Candidate, Completed, Receipt
from dataplane.pb import routing_pb2 as pb


def message(receipt: Receipt) -> pb.Receipt:
    """Return the receipt for the wire."""
    written = pb.Receipt(
        request_id=receipt.request_id.decode(errors="replace"),
        decided_unix_us=round(receipt.decided_s * 1e6),
        kind=receipt.kind,
        model=receipt.model,
        adapter=receipt.adapter,
        outcome=receipt.outcome,
        error_code=receipt.error_code,
        pool=receipt.pool,
        server=receipt.server,
        policy=receipt.policy,
        policy_number=receipt.policy_number,
        topology_number=receipt.topology_number,
        candidates=map(_candidate, receipt.candidates),
        rejected=receipt.rejected,
        eligible=receipt.eligible,
        runner_up=receipt.runner_up,
        margin=receipt.margin,
        prompt_bytes=receipt.prompt_bytes,
        prefix_blocks=receipt.prefix_blocks,
        reason=receipt.reason,
        waited_ms=receipt.waited_ms,
    )
    # A decision for a gRPC caller is ended by its age (calls.py), with no termination state: nobody knows how it went.
    if receipt.completion is not None and receipt.completion.termination:
        written.completion.CopyFrom(_completion(receipt.completion))
    return written


def _candidate(candidate: Candidate) -> pb.Candidate:
    return pb.Candidate(
        server=candidate.server,
        signals=[pb.Signal(name=s.name, value=s.value, age_ms=s.age_ms) for s in candidate.signals],
        score=candidate.score,
    )


def _completion(completed: Completed) -> pb.Completion:
    return pb.Completion(
        server=completed.server,
        first_byte_ms=completed.first_byte_ms,
        total_ms=completed.total_ms,
        bytes=completed.bytes,
        status=completed.status,
        termination=completed.termination,
        retries=completed.retries,
    )
