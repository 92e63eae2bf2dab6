"""Carries this machine's engine reports to routers elsewhere: datagrams in, one gRPC stream to each router out.

On a gateway's machine the router reads the engines' socket itself, and nothing is relayed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import grpc.aio

from dataplane.pb import routing_pb2, routing_pb2_grpc

_log = logging.getLogger(__name__)

#: Reports within this time go into one message: a first token is known some 10 ms after it left its engine.
INTERVAL_S = 0.005
#: Datagrams that wait for one router; the oldest leave. Older than a second or two they would tell nothing new.
MAX_PENDING = 4_096
#: Datagrams of one message: 1 MB, well below what gRPC takes.
MAX_PER_MESSAGE = 64
MAX_DATAGRAM_BYTES = 16_384
#: Between tries to connect: doubles from the first to the last.
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0


class _Stream:
    """One router's stream."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._some = asyncio.Event()

    def put(self, datagram: bytes) -> None:
        self._pending.append(datagram)
        self._some.set()

    async def run(self) -> None:
        """Send, and connect again whenever the router went away; what waits is kept."""
        pause = FIRST_RETRY_S
        async with grpc.aio.insecure_channel(self._target, options=(("grpc.enable_http_proxy", 0),)) as channel:
            stub = routing_pb2_grpc.RoutingServiceStub(channel)
            while True:
                await self._some.wait()
                call = stub.Report(self._messages())
                try:
                    await call
                except grpc.aio.AioRpcError as error:
                    _log.info("reports do not reach the router at %s: %s", self._target, error.details())
                finally:
                    call.cancel()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_RETRY_S)

    async def _messages(self) -> AsyncIterator[routing_pb2.ReportRequest]:
        pending = self._pending
        while True:
            await self._some.wait()
            await asyncio.sleep(INTERVAL_S)
            yield routing_pb2.ReportRequest(
                datagrams=[pending.popleft() for _ in range(min(len(pending), MAX_PER_MESSAGE))]
            )
            if not pending:
                self._some.clear()


class ReportRelay:
    """Owns the engines' socket at ``path``; ``run`` ends only when it is cancelled. Raises OSError without a socket."""

    def __init__(self, path: Path, targets: Sequence[str]) -> None:
        self._path = path
        self._streams = [_Stream(target) for target in targets]

    async def run(self) -> None:
        """Relay."""
        loop = asyncio.get_running_loop()
        bound = _bind(self._path)
        loop.add_reader(bound, self._drain, bound)
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream in self._streams:
                    tasks.create_task(stream.run())
        finally:
            loop.remove_reader(bound)
            bound.close()
            self._path.unlink(missing_ok=True)

    def _drain(self, bound: socket.socket) -> None:
        for _ in range(MAX_PER_MESSAGE):
            try:
                datagram = bound.recv(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            for stream in self._streams:
                stream.put(datagram)


def _bind(path: Path) -> socket.socket:
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o177)
        try:
            bound.bind(str(scratch))
        finally:
            os.umask(before)
        scratch.rename(path)
    except OSError:
        bound.close()
        raise
    return bound
