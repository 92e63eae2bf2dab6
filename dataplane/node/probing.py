"""Ask one replica whether it answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from dataplane.node.incarnation import Incarnation
from dataplane.node.readiness import PROBE_TIMEOUT_S

_log = logging.getLogger(__name__)


class ProbeAnswer(Protocol):
    """What one probe of a replica tells; counts are 0 when it does not tell them."""

    @property
    def ready(self) -> bool: ...  # noqa: D102
    @property
    def detail(self) -> str: ...  # noqa: D102
    @property
    def kv_capacity_tokens(self) -> int: ...  # noqa: D102
    @property
    def kv_block_tokens(self) -> int: ...  # noqa: D102


#: host, port, timeout in seconds -> answer
ProbeFunction = Callable[[str, int, float], Awaitable[ProbeAnswer]]


async def probe_once(engine: Incarnation, probe: ProbeFunction) -> bool:
    """Ask all endpoints of an engine and note what they say; return whether a report shows it.

    Never raises: a bug in a probe counts as a failed probe and does not end the watch over an engine.
    """
    before = (engine.readiness.ready, engine.readiness.detail, engine.kv_capacity_tokens)
    failure = ""
    for host, port in engine.endpoints:
        try:
            answer = await probe(host, port, PROBE_TIMEOUT_S)
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
