"""What the router is told of requests that HAProxy's old worker ends after a reload."""

import asyncio
from contextlib import suppress

from dataplane.gateway import runtime
from tests import ports
from tests.dataplane.gateway import orders
from tests.dataplane.gateway.conftest import Lab, until

REQUESTS = 8


class HeldReplica:
    """Answers nothing but health checks until ``go_on``."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.held = 0
        self.connections = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request of one connection."""
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST "):
                self.held += 1
                await self.go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.connections -= 1


async def test_requests_in_flight_over_a_reload_have_their_lines(lab: Lab) -> None:
    await lab.start_log()
    port = ports.lease()[0]
    replica = HeldReplica()
    server = await asyncio.start_server(replica.accept, "127.0.0.1", port)
    told = [orders.replica("a", 0, port)]
    await lab.apply([orders.model("m", ["a"])], told)
    old = await runtime.process_id(lab.state.haproxy_socket)
    requests = [asyncio.create_task(lab.post({"model": "m", "messages": []})) for _ in range(REQUESTS)]
    await until(lambda: replica.held == REQUESTS, "requests")
    await lab.apply([orders.model("m", ["a"], ["lora"])], told, number=2)
    assert await runtime.process_id(lab.state.haproxy_socket) != old
    assert not any(request.done() for request in requests)
    replica.go_on.set()
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200}
    wanted = {answer.headers["x-slipstream-request-id"] for answer in answers}
    await until(lambda: wanted == {line.split()[1] for line in lab.log if line.startswith("R ")}, "log lines")
    await lab.gateway.stop()
    server.close()
    await until(lambda: replica.connections == 0, "HAProxy's connections are gone")
