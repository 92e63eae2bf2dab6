"""Ask one replica whether it answers."""

from __future__ import annotations

import asyncio
import logging

from dataplane.engines.probe import ProbeFailed, ProbeResult, get, probe
from dataplane.node.incarnation import Incarnation
from dataplane.node.readiness import PROBE_TIMEOUT_S

_log = logging.getLogger(__name__)


async def probe_once(engine: Incarnation) -> bool:
    """Ask all endpoints of an engine and note what they say; return whether a report shows it.

    Never raises: a bug in a probe counts as a failed probe and does not end the watch over an engine.
    """
    before = (engine.readiness.ready, engine.readiness.detail, engine.kv_capacity_tokens)
    failure = ""
    for host, port in engine.endpoints:
        try:
            answer = await _ask(engine, host, port)
        except Exception as error:
            _log.exception("the probe of %s failed", engine.server)
            failure = f"the probe failed: {type(error).__name__}"
            break
        if not answer.ready:
            failure = answer.detail or "not ready"
            break
        engine.kv_capacity_tokens = answer.kv_capacity_tokens or engine.kv_capacity_tokens
        engine.kv_block_tokens = answer.kv_block_tokens or engine.kv_block_tokens
    if not engine.probed:
        return False  # it ended while it was asked
    engine.readiness = engine.readiness.after(not failure, failure)
    return before != (engine.readiness.ready, engine.readiness.detail, engine.kv_capacity_tokens)


async def _ask(engine: Incarnation, host: str, port: int) -> ProbeResult:
    # An engine makes its /metrics in the loop that streams its tokens: they are read until it is ready and no longer.
    if not engine.readiness.ready:
        return await probe(host, port, PROBE_TIMEOUT_S)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            status = (await get(host, port, "/health")).status
    except TimeoutError:
        return ProbeResult(False, f"no answer within {PROBE_TIMEOUT_S:g} s")
    except (ProbeFailed, OSError) as error:
        return ProbeResult(False, str(error) or type(error).__name__)
    return ProbeResult(status == 200, "" if status == 200 else f"/health answered {status}")
