"""AdminService: what operators may ask and change, on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from grpc import aio

from controlplane.controller import convert
from controlplane.controller.changes import Changes
from controlplane.controller.ledger import Ledger
from controlplane.controller.views import Views
from controlplane.errors import ControlplaneError
from dataplane.pb import admin_pb2, admin_pb2_grpc

#: Streams of events at once.
MAX_EVENT_WATCHERS = 256

Context = aio.ServicerContext[Any, Any]


class TooManyEventWatchers(ControlplaneError):
    """More streams watch events than one controller serves."""

    code: ClassVar[str] = "too_many_watchers"
    grpc_status: ClassVar[str] = "RESOURCE_EXHAUSTED"


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """One method for each RPC; the work is in Changes and Views, the errors are mapped by the interceptor."""

    def __init__(self, ledger: Ledger, changes: Changes, views: Views) -> None:
        self._ledger = ledger
        self._changes = changes
        self._views = views
        self._watchers = 0

    async def Plan(self, request: admin_pb2.PlanRequest, context: Context) -> admin_pb2.PlanResponse:  # noqa: N802
        """See the service."""
        changes, diff = self._changes.plan(request.spec_json)
        return admin_pb2.PlanResponse(changes=changes, diff=diff, revision=self._ledger.revision)

    async def Apply(self, request: admin_pb2.ApplyRequest, context: Context) -> admin_pb2.ApplyResponse:  # noqa: N802
        """See the service."""
        revision, changes = await self._changes.apply(request.spec_json, request.expected_revision)
        return admin_pb2.ApplyResponse(revision=revision, changes=changes)

    async def Get(self, request: admin_pb2.GetRequest, context: Context) -> admin_pb2.GetResponse:  # noqa: N802
        """See the service."""
        return self._views.get(request.kind, request.name)

    async def Describe(  # noqa: N802
        self, request: admin_pb2.DescribeRequest, context: Context
    ) -> admin_pb2.DescribeResponse:
        """See the service."""
        return self._views.describe(request.kind, request.name)

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.ChangeResponse:  # noqa: N802
        """See the service."""
        return admin_pb2.ChangeResponse(changes=await self._changes.drain(request.target, request.deadline_s))

    async def Undrain(  # noqa: N802
        self, request: admin_pb2.UndrainRequest, context: Context
    ) -> admin_pb2.ChangeResponse:
        """See the service."""
        return admin_pb2.ChangeResponse(changes=await self._changes.undrain(request.target))

    async def Restart(  # noqa: N802
        self, request: admin_pb2.RestartRequest, context: Context
    ) -> admin_pb2.ChangeResponse:
        """See the service."""
        return admin_pb2.ChangeResponse(changes=await self._changes.restart(request.target))

    async def Scale(self, request: admin_pb2.ScaleRequest, context: Context) -> admin_pb2.ChangeResponse:  # noqa: N802
        """See the service."""
        return admin_pb2.ChangeResponse(changes=await self._changes.scale(request.pool, request.replicas))

    async def Watch(  # noqa: N802
        self, request: admin_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[admin_pb2.Event]:
        """See the service."""
        if self._watchers >= MAX_EVENT_WATCHERS:
            raise TooManyEventWatchers(f"{MAX_EVENT_WATCHERS} streams watch events already")
        self._watchers += 1
        try:
            async for event in self._ledger.events.watch(request.after_event):
                yield convert.event(event)
        finally:
            self._watchers -= 1

    async def CreateKey(  # noqa: N802
        self, request: admin_pb2.CreateKeyRequest, context: Context
    ) -> admin_pb2.CreateKeyResponse:
        """See the service."""
        key, secret = await self._changes.create_key(request.name, request.tenant, request.priority)
        return admin_pb2.CreateKeyResponse(key=key, secret=secret)

    async def ListKeys(  # noqa: N802
        self, request: admin_pb2.ListKeysRequest, context: Context
    ) -> admin_pb2.ListKeysResponse:
        """See the service."""
        keys = convert.api_keys(self._ledger.cluster, self._ledger.keys.values())
        return admin_pb2.ListKeysResponse(keys=sorted(keys, key=lambda key: key.name))

    async def RevokeKey(  # noqa: N802
        self, request: admin_pb2.RevokeKeyRequest, context: Context
    ) -> admin_pb2.RevokeKeyResponse:
        """See the service."""
        await self._changes.revoke_key(request.name)
        return admin_pb2.RevokeKeyResponse()
