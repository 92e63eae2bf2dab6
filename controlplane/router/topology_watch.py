"""Follows the controller's TopologyService; the router serves with what it has while the controller is away.

Imported after the router serves: gRPC takes longer to load than all else together.
"""

from __future__ import annotations

import asyncio
import logging

import grpc.aio

from controlplane.router.counters import Counters
from controlplane.router.topology import InstalledTopology
from controlplane.router.topology_file import MAX_TOPOLOGY_BYTES
from dataplane.pb.topology_pb2 import WatchTopologyRequest
from dataplane.pb.topology_pb2_grpc import TopologyServiceStub

_log = logging.getLogger(__name__)

#: A controller that was killed is back within a second; routers of a large cluster must not storm one that is not.
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0

# The channel's own backoff would wait up to 120 s, and channels to one address share it.
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_TOPOLOGY_BYTES),
    ("grpc.initial_reconnect_backoff_ms", int(FIRST_RETRY_S * 1000)),
    ("grpc.min_reconnect_backoff_ms", int(FIRST_RETRY_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(LAST_RETRY_S * 1000)),
    ("grpc.use_local_subchannel_pool", 1),
)


async def watch(target: str, subscriber: str, installed: InstalledTopology, counters: Counters) -> None:
    """Offer every snapshot of the controller at ``target`` to ``installed``, until cancelled."""
    async with grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS) as channel:
        stub = TopologyServiceStub(channel)
        retry_s = FIRST_RETRY_S
        connected = True
        while True:
            try:
                async for topology in stub.Watch(WatchTopologyRequest(subscriber=subscriber)):
                    retry_s = FIRST_RETRY_S
                    if not connected:
                        _log.info("the controller is back")
                    connected = True
                    installed.offer(topology)
            except grpc.aio.AioRpcError as error:
                if connected:
                    _log.warning("no controller at %s: %s", target, error.code().name)
                connected = False
            counters.topology_stream_failures += 1
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, LAST_RETRY_S)
