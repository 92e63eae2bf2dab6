"""The part of the router that needs gRPC: its own API, and the controller that it follows.

Imported in a thread after the router serves, because gRPC takes longer to load than all else together.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from controlplane.router import unix_sockets
from controlplane.router.service import MAX_RELAYS, RoutingService
from controlplane.router.topology_watch import watch
from dataplane.pb import routing_pb2
from dataplane.pb.routing_pb2_grpc import add_RoutingServiceServicer_to_server

if TYPE_CHECKING:
    from controlplane.router.process import Router

#: People and a page ask, not requests; each node agent of another machine has a stream for its reports.
MAX_CONCURRENT_CALLS = 256 + MAX_RELAYS
#: Calls end within milliseconds; watchers are cut.
STOP_GRACE_S = 0.2

SERVICE = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name


async def serve(router: Router) -> None:
    """Serve RoutingService, health and reflection on the router's socket and follow the controller, until cancelled."""
    server = grpc.aio.server(maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS)
    service = RoutingService(
        router.core,
        router.installed,
        router.counters,
        router.clock,
        router.read_log,
        router.reports,
        router.telemetry,
        router.decisions.waiting,
        router.precise,
    )
    add_RoutingServiceServicer_to_server(service, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await _report(healthy, health_pb2.HealthCheckResponse.NOT_SERVING)
    path = router.state.router_socket
    temporary = unix_sockets.temporary_path(path)
    temporary.unlink(missing_ok=True)
    with unix_sockets.only_ours():
        server.add_insecure_port(f"unix:{temporary}")
    await server.start()
    unix_sockets.publish(temporary, path)
    inode = unix_sockets.inode(path)
    ready = asyncio.create_task(_report_ready(router, healthy))
    try:
        await watch(router.controller, f"router {socket.gethostname()}", router.installed, router.counters)
    finally:
        ready.cancel()
        unix_sockets.remove(path, inode)
        await server.stop(STOP_GRACE_S)


async def _report_ready(router: Router, healthy: health.aio.HealthServicer) -> None:
    await router.installed.ready.wait()
    await _report(healthy, health_pb2.HealthCheckResponse.SERVING)


async def _report(healthy: health.aio.HealthServicer, status: int) -> None:
    for service in ("", SERVICE):
        await healthy.set(service, status)
