"""Sets the core's counts of streams right: log lines can be lost, and other paths lead to the replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from controlplane.router.counters import Counters
from controlplane.router.haproxy_stats import StatsUnavailable, current_streams
from dataplane.state_dir import StateDir

_log = logging.getLogger(__name__)

#: A lost log line counts for this long.
INTERVAL_S = 5.0
#: `show stat` stops HAProxy's thread for 5 us a server; at most a thousandth of its time goes there.
INTERVAL_S_PER_SERVER = 0.005


async def reconcile_forever(
    state: StateDir,
    reconcile: Callable[[Mapping[str, int], float], object],
    clock: Callable[[], float],
    counters: Counters,
) -> None:
    """Ask HAProxy again and again, until cancelled; without HAProxy nothing happens."""
    answered = True
    servers = 0
    while True:
        await asyncio.sleep(max(INTERVAL_S, servers * INTERVAL_S_PER_SERVER))
        if not state.haproxy_socket.exists():
            continue
        try:
            streams = await current_streams(state.haproxy_socket, state.haproxy_master_socket)
        except StatsUnavailable as error:
            counters.reconciliation_failures += 1
            if answered:
                _log.warning("HAProxy does not tell its streams: %s", error)
            answered = False
            continue
        answered = True
        servers = len(streams)
        try:
            reconcile(streams, clock())
        except Exception as error:
            counters.errors += 1
            _log.warning("error no. %d, in a reconciliation: %s", counters.errors, type(error).__name__)
        else:
            counters.reconciliations += 1
