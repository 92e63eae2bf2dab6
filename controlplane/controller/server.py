"""The controller's gRPC server on its unix socket, with health and reflection."""

from __future__ import annotations

import os
from pathlib import Path

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from controlplane.controller.admin_service import AdminService
from controlplane.controller.interceptor import ErrorInterceptor
from controlplane.controller.node_service import NodeService
from controlplane.controller.topology_service import TopologyService
from dataplane.pb import (
    admin_pb2,
    admin_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    topology_pb2,
    topology_pb2_grpc,
)

#: Largest message: a topology of 4,096 replicas is about 1 MB, a spec at most 3 MiB.
MAX_MESSAGE_BYTES = 16 << 20
#: RPCs at once, streams included: nodes, routers, watchers and operators.
MAX_RPCS = 4_096

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)
SERVICES = (
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    node_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name,
    topology_pb2.DESCRIPTOR.services_by_name["TopologyService"].full_name,
)


class ControllerServer:
    """Serves the three services. Only the socket's owner reaches it: its mode is 0600 from the first moment on."""

    def __init__(self, admin: AdminService, nodes: NodeService, topology: TopologyService) -> None:
        self._server = aio.server(
            interceptors=(ErrorInterceptor(),), options=_OPTIONS, maximum_concurrent_rpcs=MAX_RPCS
        )
        self._health = health.aio.HealthServicer()
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._server)
        node_pb2_grpc.add_NodeServiceServicer_to_server(nodes, self._server)
        topology_pb2_grpc.add_TopologyServiceServicer_to_server(topology, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, socket: Path) -> None:
        """Listen on ``socket``; a socket that a dead process left there is replaced."""
        socket.unlink(missing_ok=True)
        before = os.umask(0o077)
        try:
            self._server.add_insecure_port(f"unix:{socket}")
        finally:
            os.umask(before)
        socket.chmod(0o600)
        await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new RPCs, end the streams after ``grace_s`` seconds at most."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
