"""Precise routing only where it is wanted: a router without a precise model loads none of it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from typing import TYPE_CHECKING

from controlplane.router.decisions import Decisions
from controlplane.routing.fleet import Topology
from dataplane.gateway import salt_key, salts
from dataplane.middleware import cache_salt
from dataplane.state_dir import StateDir

if TYPE_CHECKING:
    from controlplane.router.precise.matching import Matching, Prompt
    from dataplane.pb import routing_pb2 as pb

_log = logging.getLogger(__name__)

#: Seconds that a thread may keep the interpreter while another waits for it. With Python's own 5 ms, decisions would
#: wait for a template that is rendered beside them.
SWITCH_INTERVAL_S = 0.0005


class PreciseModels:
    """Gives ``decisions`` precise answers while the topology has a precise model. Runs on the router's event loop."""

    def __init__(self, decisions: Decisions, state: StateDir) -> None:
        self._state = state
        self._salt_key = b""
        self.matching: Matching | None = None
        self._decisions = decisions
        self._topology: Topology | None = None
        self._task: asyncio.Task[None] | None = None

    def install(self, topology: Topology) -> None:
        """Take a topology; what it takes is loaded in a thread, while requests go by their text."""
        self._topology = topology
        if self.matching is not None:
            self._install(self.matching, topology)
        elif self._task is None and any(model.precise for model in topology.models):
            self._task = asyncio.create_task(self._run())

    async def prompt(self, name: bytes, kind: int, tenant: bytes, body: bytes) -> Prompt | None:
        """Return what is known of a prompt, None when the request is to go by its text."""
        matching = self.matching
        if matching is None or not body or not matching.wants(name, kind):
            return None
        return await matching.prompt(name, kind, tenant, body)

    def status(self) -> pb.PreciseStatus | None:
        """Return what is known of precise models; None when there was none since the start."""
        if self.matching is None:
            return None
        from controlplane.router.precise.status import message

        return message(self.matching)

    async def close(self) -> None:
        """Let go of the engines."""
        self._decisions.precise = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.matching is not None:
            await self.matching.close()

    async def _run(self) -> None:
        try:
            await asyncio.to_thread(importlib.import_module, "controlplane.router.precise.deciding")
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            from controlplane.router.precise.matching import Matching

            self.matching = Matching(self._salt)
            assert self._topology is not None
            self._install(self.matching, self._topology)
            await self.matching.run()
        except Exception:
            _log.exception("precise models are routed by their text")
            self._decisions.precise = None

    def _salt(self, tenant: bytes) -> str:
        """Return what the gateway and the middleware make a tenant's cache salt."""
        key = self._salt_key
        signed = salts.salt(tenant.decode(errors="replace"), key).encode() if key and tenant else b""
        return cache_salt.salt(signed, tenant)

    def _install(self, matching: Matching, topology: Topology) -> None:
        from controlplane.router.precise.deciding import PreciseDecisions

        self._salt_key = salt_key.read(self._state)
        matching.install(topology)
        wanted = any(model.precise for model in topology.models)
        self._decisions.precise = PreciseDecisions(matching, self._decisions.decide_precisely) if wanted else None
