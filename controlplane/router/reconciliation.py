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


class Reconciliation:
    """Hands HAProxy's counts to ``reconcile`` (streams of each server, seconds since 1970) at intervals."""

    def __init__(
        self,
        state: StateDir,
        reconcile: Callable[[Mapping[str, int], float], object],
        clock: Callable[[], float],
        counters: Counters,
    ) -> None:
        self._state = state
        self._reconcile = reconcile
        self._clock = clock
        self._counters = counters
        self._answered = True

    async def run(self) -> None:
        """Reconcile at once, because this router may have been away, and then again and again until cancelled."""
        while True:
            servers = await self.once()
            await asyncio.sleep(max(INTERVAL_S, servers * INTERVAL_S_PER_SERVER))

    async def once(self) -> int:
        """Reconcile once; return the number of servers, 0 when HAProxy is not there or does not answer."""
        counters = self._counters
        if not self._state.haproxy_socket.exists():
            return 0
        try:
            streams = await current_streams(self._state.haproxy_socket, self._state.haproxy_master_socket)
        except StatsUnavailable as error:
            counters.reconciliation_failures += 1
            if self._answered:
                _log.warning("HAProxy does not tell its streams: %s", error)
            self._answered = False
            return 0
        self._answered = True
        try:
            self._reconcile(streams, self._clock())
        except Exception as error:
            counters.errors += 1
            _log.warning("error no. %d, in a reconciliation: %s", counters.errors, type(error).__name__)
        else:
            counters.reconciliations += 1
        return len(streams)
